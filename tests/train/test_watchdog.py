import threading

from llmctl.train.watchdog import Beat, Watchdog, beats, stalled


def beat(work, rank, *doings):
    mine = Beat(work, rank)
    for step, doing in doings:
        mine.at(step, doing)


def test_the_rank_that_is_behind_the_others_is_named(tmp_path):
    beat(tmp_path, 0, (0, "a forward pass"), (0, "a backward pass"))
    beat(tmp_path, 1, (0, "a forward pass"))
    beat(tmp_path, 2, (0, "a forward pass"), (0, "a backward pass"))
    now = beats(tmp_path, 3)
    assert stalled(now, now) == "rank 1 hangs in a forward pass of step 1, and the others wait for it"


def test_where_all_are_at_the_same_place_none_is_blamed(tmp_path):
    for rank in (0, 1, 2):
        beat(tmp_path, rank, (4, "the update"))
    now = beats(tmp_path, 2)  # the third is of an earlier attempt with more ranks
    assert stalled(now, now) == "all 2 ranks stand still in the update of step 5"


def test_whoever_moves_is_left_alone(tmp_path):
    beat(tmp_path, 0, (0, "a forward pass"))
    before = beats(tmp_path, 3)
    beat(tmp_path, 0, (0, "a forward pass"), (0, "a backward pass"))
    assert stalled(before, beats(tmp_path, 3)) is None
    assert stalled({}, {}) is None


def test_it_barks_once_and_only_where_nobody_moves(tmp_path):
    barked, heard = [], threading.Event()

    def bark(error):
        barked.append(str(error))
        heard.set()

    with Watchdog(tmp_path, 2, 0.3, bark):
        beat(tmp_path, 0, (0, "a forward pass"), (0, "a backward pass"))
        beat(tmp_path, 1, (0, "a forward pass"))
        assert heard.wait(60)
    assert len(barked) == 1
    assert barked[0].startswith("rank 1 hangs in a forward pass of step 1")
    assert barked[0].endswith("no rank has moved for 0.3 s")


def test_without_patience_it_does_not_look(tmp_path):
    with Watchdog(tmp_path, 2, 0.0, bark=None) as watchdog:
        assert not watchdog._thread.is_alive()
