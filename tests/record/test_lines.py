"""The line that a terminal shows of a step."""

from entropy_rl.record.lines import duration, line_of
from entropy_rl.record.metrics import RunLog


def test_a_step_is_one_line(tmp_path):
    row = {"step": 12, "reward/mean": 0.51234, "entropy/mean": 0.1666, "throughput/rollout_tokens_per_s": 1234.6}
    assert line_of(row, 60, 60.0) == "step 12/60  reward 0.512  entropy 0.167  1235 tokens/s  1m00s left"
    row |= {"eval/a/accuracy": 0.41, "eval/a/low": 0.344, "eval/a/high": 0.479}
    assert line_of(row, 60, None).endswith("1235 tokens/s  a 41.0% [34.4, 47.9]")
    line = line_of(RunLog(tmp_path, None).write({"step": 1}), 100, 7700.0)
    assert line == "step 1/100  reward -  entropy -  - tokens/s  2h08m left"


def test_step_0_has_its_accuracy_alone():
    accuracy = {"eval/a/accuracy": 0.41, "eval/a/low": 0.344, "eval/a/high": 0.479}
    assert line_of({"step": 0} | accuracy, 60, None) == "step 0  a 41.0% [34.4, 47.9]"
    assert line_of({"step": 0}, 60, None) == "step 0"


def test_a_time_is_never_below_0():
    assert duration(-3.0) == "0m00s"
