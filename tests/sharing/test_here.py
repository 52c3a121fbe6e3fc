"""Work shared by the processes of one machine."""

import os

import pytest
from sharing_tasks import load, read

from frameflex.sharing import Here, Work
from frameflex.video.isolated import Lost


@pytest.mark.parametrize("separate", [False, True])
def test_every_task_has_its_answer_once_and_one_that_kills_its_process_costs_itself_alone(separate):
    work = Work(read, load, separate=separate, batch_size=4, timeout_seconds=20)
    answers = dict(Here(2).run(work, [*range(10), "crash"]))
    assert set(answers) == {*range(10), "crash"}
    assert isinstance(answers["crash"], Lost)
    assert "SIGSEGV" in answers["crash"].reason
    del answers["crash"]
    assert {task: answer for task, (answer, _) in answers.items()} == {i: 2 * i + 1 for i in range(10)}
    assert (os.getpid() in {process for _, process in answers.values()}) == separate


def test_a_task_that_hangs_is_ended():
    answers = dict(Here(2).run(Work(read, timeout_seconds=1.0), [1, "hang", 2]))
    assert (answers[1], answers[2], answers["hang"].kind) == (2, 4, "timed-out")


@pytest.mark.parametrize("separate", [False, True])
def test_what_reading_or_a_network_raises_ends_the_work_as_it_is(separate):
    with pytest.raises(RuntimeError, match="^the storage is gone$"):
        list(Here(2).run(Work(read, load, separate=separate), [1, 2, "storage", 3]))
    with pytest.raises(ValueError, match="can't do 13"):
        list(Here(2).run(Work(read, load, separate=separate), range(20)))


def test_a_long_task_holds_up_nobody():
    order = [task for task, _ in Here(2).run(Work(read), [1.5, *range(50)])]
    assert order.index(1.5) > 25


def test_tasks_are_drawn_as_they_are_taken():
    drawn = []

    def tasks():
        for i in range(1000):
            drawn.append(i)
            yield i

    running = Here(2).run(Work(read), tasks())
    next(running)
    assert len(drawn) < 10
    running.close()
