"""Maps: languages, meanings or any corpus as points on a plane, in one picture."""
