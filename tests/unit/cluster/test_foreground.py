"""A cluster in the foreground: what counts as a signal to end it."""

from cluster.foreground import Stopped, is_stop


def test_a_signal_that_came_within_a_call_written_in_c_is_one():
    def within_c():
        try:
            raise Stopped
        except Stopped as stopped:
            raise SystemError("returned a result with an exception set") from stopped

    try:
        within_c()
    except SystemError as error:
        assert is_stop(error)
    assert is_stop(Stopped())


def test_an_error_of_its_own_is_none():
    assert not is_stop(SystemError("of another kind")) and not is_stop(None)
