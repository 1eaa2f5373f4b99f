"""The interfaces of other servers, one file each: from JSON to a request, and from rows to JSON."""
