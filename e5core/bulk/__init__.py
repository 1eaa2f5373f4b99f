"""Files of texts to files of vectors: of any size, on several processes, to be stopped at will.

sources.py  rows from files        workers.py  vectors of chunks, by one process or several
chunks.py   rows to chunks         sinks.py    vectors and ids to files
journal.py  how far the work is    job.py      all of it together
"""

from e5core.bulk.job import SHARD_ROWS, Summary, embed_files, partial_folder
from e5core.bulk.journal import PartialOutputError

__all__ = ["SHARD_ROWS", "PartialOutputError", "Summary", "embed_files", "partial_folder"]
