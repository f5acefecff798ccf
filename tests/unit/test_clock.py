from fake_clock import FakeClock

from melanoma_spark.clock import Backoff


def test_attempts_come_later_each_time_and_at_once_after_a_success():
    clock = FakeClock()
    backoff = Backoff(60, 900, clock)
    assert backoff.over
    for wait in (60, 120, 240, 480, 900, *[900] * 2000):
        assert backoff.failed() == wait
        clock.sleep(wait - 1)
        assert not backoff.over
        clock.sleep(1)
        assert backoff.over
    backoff.succeeded()
    assert backoff.failed() == 60
