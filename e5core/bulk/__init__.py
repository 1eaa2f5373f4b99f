"""Files of texts to files of vectors: of any size, on several processes, to be stopped at will.

job.py      the steps of a job           options.py  what it is to do
sources.py  the files of the input       rows.py     what each row of them is
text.py     rows from lines of text      parquet.py  rows from Parquet, and vectors into it
chunks.py   rows to chunks               engine.py   chunks to vectors, in this process
workers.py  the same in several          sinks.py    vectors and ids to files
partial.py  the folder of these files    journal.py  how far the work is
record.py   what made a finished output  progress.py the bar
"""

from e5core.bulk.job import SHARD_ROWS, Summary, embed_files
from e5core.bulk.partial import PartialOutputError, partial_folder

__all__ = ["SHARD_ROWS", "PartialOutputError", "Summary", "embed_files", "partial_folder"]
