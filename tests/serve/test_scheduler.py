"""Fair shares of every forward pass: who is in the next one, and that everybody's turn comes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from e5core.serve.engines import Engine, Pace
from e5core.serve.jobs import Batch, Job
from e5core.serve.scheduler import Scheduler

BUDGET = 400


class Fixed(Pace):
    """A pace whose budget does not change."""

    def __init__(self, budget: int = BUDGET) -> None:
        super().__init__("cpu")
        self._fixed = budget

    @property
    def budget(self) -> int:
        return self._fixed


def engine(budget: int = BUDGET) -> Engine:
    return Engine(Fixed(budget), [0, 2], lambda sequences: np.ones((len(sequences), 2), np.float32))


def job(of: Engine, *lengths: int) -> Job:
    return Job(of, [[7] * length for length in lengths], lambda job: None)


def batches(scheduler: Scheduler) -> list[Batch]:
    """Everything that waits, batch by batch."""
    taken = []
    while (batch := scheduler.take(timeout=0)) is not None:
        taken.append(batch)
    return taken


def jobs_of(batch: Batch) -> set[Job]:
    return {job for job, _ in batch.parts}


def test_a_lone_query_is_in_the_next_pass_whatever_waits() -> None:
    model, scheduler = engine(), Scheduler()
    for _ in range(50):
        scheduler.add(job(model, *[100] * 200))
    for _ in range(60):
        assert scheduler.take(timeout=0) is not None
    query = job(model, 10)
    scheduler.add(query)
    short, whole = scheduler.take(timeout=0), scheduler.take(timeout=0)
    assert short is not None
    assert whole is not None
    assert jobs_of(short) == {query}  # the others would only make it last longer
    assert whole.tokens == BUDGET


def test_every_second_pass_is_whole_while_queries_keep_coming() -> None:
    model, scheduler = engine(), Scheduler()
    bulk = job(model, *[100] * 200)
    scheduler.add(bulk)
    scheduler.take(timeout=0)
    for number in range(20):
        query = job(model, 10)
        scheduler.add(query)
        batch = scheduler.take(timeout=0)
        assert batch is not None
        assert query in jobs_of(batch)
        assert batch.tokens == (10 if number % 2 == 0 else 310)


def test_a_bulk_request_alone_gets_whole_passes() -> None:
    model, scheduler = engine(), Scheduler()
    scheduler.add(job(model, *[100] * 40))
    assert [batch.tokens for batch in batches(scheduler)] == [BUDGET] * 10


def test_bulk_requests_share_alike() -> None:
    model, scheduler = engine(), Scheduler()
    bulks = [job(model, *[50] * 100) for _ in range(3)]
    for bulk in bulks:
        scheduler.add(bulk)
    for _ in range(15):
        scheduler.take(timeout=0)
    taken = [bulk.tokens - bulk.waiting for bulk in bulks]
    assert max(taken) - min(taken) <= BUDGET


def test_no_flood_of_new_jobs_stops_the_old_ones() -> None:
    model, scheduler = engine(), Scheduler()
    bulk = job(model, *[100] * 20)
    scheduler.add(bulk)
    scheduler.take(timeout=0)
    for _ in range(17):
        for _ in range(100):
            scheduler.add(job(model, 10))
        scheduler.take(timeout=0)
    assert not bulk.waiting


def test_long_texts_are_taken_in_a_flood_of_new_jobs_too() -> None:
    model, scheduler = engine(), Scheduler()
    bulk = job(model, *[int(BUDGET * 0.9)] * 5, *[BUDGET * 2] * 2)
    scheduler.add(bulk)
    scheduler.take(timeout=0)
    for _ in range(24):
        for _ in range(100):
            scheduler.add(job(model, 10))
        scheduler.take(timeout=0)
    assert not bulk.waiting


def test_queries_are_no_slower_than_they_come_beside_long_texts() -> None:
    """Of a pass that one long text fills nothing is left, so the short ones must do."""
    model, scheduler = engine(), Scheduler()
    scheduler.add(job(model, *[int(BUDGET * 0.95)] * 200))
    scheduler.take(timeout=0)
    for number in range(60):
        for _ in range(5):  # as many as come in one pass
            scheduler.add(job(model, 14))
        scheduler.take(timeout=0)
        queue = scheduler._queues[model]
        assert len(queue.new) <= 12, number


def test_room_behind_long_texts_is_filled_with_shorter_ones() -> None:
    model, scheduler = engine(), Scheduler()
    scheduler.add(job(model, *[250] * 4, *[150] * 4))
    assert [batch.tokens for batch in batches(scheduler)] == [BUDGET] * 4


def test_a_text_longer_than_the_budget_goes_alone() -> None:
    model, scheduler = engine(), Scheduler()
    scheduler.add(job(model, 5, BUDGET * 3, 6))
    assert [batch.tokens for batch in batches(scheduler)] == [BUDGET * 3, 11]


def test_two_engines_take_turns() -> None:
    one, other, scheduler = engine(), engine(), Scheduler()
    scheduler.add(job(one, *[BUDGET] * 4))
    scheduler.add(job(other, *[BUDGET] * 2))
    found = [batch.engine is one for batch in batches(scheduler)]
    assert found == [True, False, True, False, True, True]


def test_a_query_of_another_model_is_in_the_next_pass() -> None:
    one, other, scheduler = engine(), engine(), Scheduler()
    scheduler.add(job(one, *[BUDGET] * 9))
    scheduler.take(timeout=0)
    found = []
    for _ in range(6):  # and no queries of the one stop the other
        scheduler.add(job(other, 10))
        batch = scheduler.take(timeout=0)
        assert batch is not None
        found.append(batch.engine is other)
    assert found == [True, False] * 3


def test_what_is_given_up_is_not_taken() -> None:
    model, scheduler = engine(), Scheduler()
    kept, gone = job(model, *[100] * 8), job(model, *[100] * 8)
    scheduler.add(gone)
    scheduler.take(timeout=0)
    scheduler.add(kept)
    assert scheduler.discard(gone) == 400
    assert scheduler.waiting() == (8, 800)
    assert all(jobs_of(batch) == {kept} for batch in batches(scheduler))
    assert scheduler.waiting() == (0, 0)
    assert scheduler.discard(gone) == 0


def test_a_closed_queue_takes_nothing() -> None:
    model, scheduler = engine(), Scheduler()
    waiting = job(model, 10)
    assert scheduler.add(waiting)
    assert scheduler.close() == [waiting]
    assert not scheduler.add(job(model, 10))
    assert scheduler.waiting() == (0, 0)
    assert scheduler.take() is None


def test_how_long_things_wait() -> None:
    model, scheduler = engine(), Scheduler()
    model.pace.start(1000, 1.0)
    assert scheduler.seconds(model, 100) == (0, 0.1)
    scheduler.add(job(model, *[100] * 50))
    everything, turns = scheduler.seconds(model, 100)
    assert everything == 5.0
    assert abs(turns - 0.2) < 1e-9  # the other takes a turn of like length


def test_what_waits_counts_whole_for_a_large_job() -> None:
    """Others come in the place of those that end, and take turns too."""
    model, scheduler = engine(), Scheduler()
    model.pace.start(1000, 1.0)
    for _ in range(3):
        scheduler.add(job(model, *[100] * 20))
    scheduler.add(job(model, 10))
    for _ in range(10):
        scheduler.take(timeout=0)
    assert scheduler.seconds(model, 2000)[0] < 4
    assert abs(scheduler.seconds_in_turns(model, 2000) - 8) < 1e-9
    assert abs(scheduler.seconds_in_turns(model, 500) - 2) < 1e-9


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 900), min_size=1, max_size=30), st.integers(0, 3)),
        max_size=12,
    ),
    st.integers(1, 700),
)
def test_any_mix_of_lengths_ends(work: list[tuple[list[int], int]], budget: int) -> None:
    """Every sequence is taken once, in batches that keep to the budget."""
    models = [engine(budget), engine(budget)]
    scheduler = Scheduler()
    jobs, taken = [], []
    for lengths, meanwhile in work:
        jobs.append(job(models[len(jobs) % 2], *lengths))
        scheduler.add(jobs[-1])
        for _ in range(meanwhile):
            taken.append(scheduler.take(timeout=0))
    taken += batches(scheduler)
    found = [part for batch in taken if batch is not None for part in batch.parts]
    expected = [(one, index) for one in jobs for index in range(len(one.sequences))]
    assert sorted(found, key=lambda part: (jobs.index(part[0]), part[1])) == expected
    for batch in taken:
        assert batch is None or batch.tokens <= budget or len(batch.parts) == 1
    assert scheduler.waiting() == (0, 0)


def test_new_jobs_are_taken_whole_or_not_at_all() -> None:
    """Between two layers, within the tokens that are left and a quarter of a pass."""
    scheduler, one = Scheduler(), engine(400)
    many, fits, two, other = (
        Job(one, [[5] * n] * count, lambda job: None)
        for n, count in ((30, 40), (90, 1), (20, 2), (60, 1))
    )
    assert scheduler.take_new(10**6) is None
    for job in (many, fits, two, other):
        scheduler.add(job)
    before = scheduler.waiting()
    assert scheduler.take_new(19) is None
    assert scheduler.waiting() == before
    batch = scheduler.take_new(1000)  # a quarter of 400 is 100: 90, and nothing more
    assert batch is not None
    assert [job for job, _ in batch.parts] == [fits]
    batch = scheduler.take_new(1000)
    assert batch is not None
    assert [job for job, _ in batch.parts] == [two, two, other]
    assert scheduler.waiting() == (40, 1200)
    assert scheduler.take_new(1000) is None  # what is left is more than a turn
    batch = scheduler.take()
    assert batch is not None
    assert batch.parts[0][0] is many
    scheduler.close()
    assert scheduler.take_new(1000) is None


def test_an_engine_without_work_has_no_turn() -> None:
    scheduler, one = Scheduler(), engine(400)
    scheduler.add(Job(one, [[5] * 9], lambda job: None))
    assert scheduler.take_new(100) is not None
    assert scheduler.take(timeout=0) is None
