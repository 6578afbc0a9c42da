"""Every limit in one place: the value, its unit, and why neither more nor less."""

BATCH_RECORDS_MAX = 2_048
"""Records in a batch. More leaves the processor's caches, and keeps the event loop for longer than the 1 to 2 ms that
these take; fewer pays the fixed cost of a batch (log read, mailbox hops, window bookkeeping) too often: 1,024 measured
8 % slower."""

BATCH_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of source records in a batch. Bounds what a mailbox of large records holds; a single larger record is still
one batch, up to RECORD_BYTES_MAX."""

RECORD_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of one record in the log. A record must fit in memory several times over (read, decoded, in a batch)."""

APPEND_RECORDS_MAX = 65_536
"""Records in one append call, hence in one frame. One frame is one checksum and one decision of recovery."""

FRAME_BYTES_MAX = 64 * 1024 * 1024
"""Bytes in one frame. A length beyond it is damage, so that a flipped bit never asks for the memory of a length."""

MAILBOX_RECORDS_MAX = 8_192
"""Records in a mailbox. Large enough that sender and receiver need not take turns for each batch; small enough that a
barrier never queues behind more than a few milliseconds of a fast stage. A slow stage gets less: see
engine/mailbox.py."""

UNPACED_RECORDS_MAX = 1_024
"""Records that may wait for a receiver, or a target, whose speed is not known yet. One that takes a thousand a second
keeps the first barrier for a second; a fast one has told its speed before it could want more."""

MAILBOX_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of source records in a mailbox; the memory bound of an edge whatever the size of its records."""

READ_AHEAD_BATCHES = 2
"""Decoded batches that a reader holds ready for the sequencer: one being taken, one being decoded."""

KEY_GROUPS = 128
"""Key groups of a keyed operator, fixed for the life of a job: the most parts it can ever have."""

TURN_ENTRIES = 4_096
"""Entries of state that are put in order, or read back, in one go: about 8 ms of the event loop. More holds up the
service around the job; fewer makes more runs to be merged."""

ENCODE_SLICE_ENTRIES = 512
"""Entries encoded in one go between batches at a checkpoint: about half a millisecond of the event loop."""

DIRTY_ENTRIES_MAX = 2_000_000
"""Changed entries in memory for one operator part, not yet durable. At the limit an epoch starts early."""

DIRTY_BYTES_MAX = 256 * 1024 * 1024
"""The same in bytes, as they are encoded, by the rows of the epoch before: large values end an epoch before they fill
the memory, in which they take several times as much."""

CACHE_ENTRIES_MAX = 1_000_000
"""Clean entries kept in memory for one operator part; the rest is read from LMDB when needed."""

PENDING_CHUNK_BYTES = 1024 * 1024
"""Bytes of a sink's pending output in one row of a checkpoint."""

EPOCH_OUTPUT_BYTES_MAX = 8 * 1024 * 1024
"""Bytes of pending output for one sink in an epoch. At the limit an epoch starts early; if the one before is not
durable then, the source waits. Three epochs may be in memory, and memory that is new costs time: with 64 MB a stateless
job took 8 % more time and 2.5 times the memory. With less, a disk that takes 20 ms for a sync would hold it up."""

IMMEDIATE_BYTES_MAX = 4 * 1024 * 1024
"""Bytes that wait for a sink that is written at once. Enough for one good write while another is under way; what waits
there is what a checkpoint waits for."""

CHECKPOINTS_KEPT = 1_000
"""Summaries of past checkpoints kept for `streamactors checkpoints`; the state itself is only ever the newest."""

POSITION_GAP_MS = 60_000
"""Event time between two positions that are kept for good (durable/positions.py), ms. Less: more checkpoints write a
row more. More: a replay from a time begins further before it."""

POSITION_SHARE = 64
"""In a stream that is short so far, a position is kept whenever event time has moved on by one of so many parts of it.
More would write a row at each checkpoint of a job's first hour; fewer leaves a stream of minutes with a handful."""

POSITIONS_DENSE = 256
"""Positions that are all kept, before they are thinned out by age; older ones are at most twice the age divided by this
apart. More: more rows, about half as many again for each doubling of the stream. Fewer: less exact."""

RESERVE_BYTES = 16 * 1024 * 1024
"""Bytes that a job keeps free for its last checkpoint. More than one writes where the interval is a second or less
(some 4,000 pages of LMDB); little enough that nobody minds it in each job's folder."""

MAP_SIZE = 1 << 40
"""Bytes of address space of an LMDB map. Never resized: a resize under a live reader kills the reader."""

LMDB_KEY_BYTES_MAX = 511
"""LMDB's own limit; a longer key is stored by its digest with the key in the value."""

assert BATCH_BYTES_MAX <= MAILBOX_BYTES_MAX, "a batch must fit into an empty mailbox"
assert 2 * BATCH_RECORDS_MAX <= MAILBOX_RECORDS_MAX, "a sender must fit a batch while one is being read"
assert RECORD_BYTES_MAX < FRAME_BYTES_MAX, "the largest record must fit in a frame"
assert UNPACED_RECORDS_MAX <= MAILBOX_RECORDS_MAX
assert BATCH_RECORDS_MAX <= APPEND_RECORDS_MAX
