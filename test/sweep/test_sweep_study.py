"""What a study knows of the runs of a sweep."""

import optuna
import pytest
from optuna.trial import TrialState

from keypoint_detection.sweep import study as memory


def described(study):
    runs = memory.list_runs(study)
    return [(run.number, run.state, run.value, run.parameters, run.evaluations, run.problem) for run in runs]


@pytest.mark.parametrize(("direction", "best"), [("maximize", 0.5), ("minimize", 0.25)])
def test_a_run_is_what_its_latest_attempt_is(direction, best):
    study = optuna.create_study(direction=direction)
    memory.add_runs(study, 2)
    memory.add_runs(study, 3)  # of a command that asks for more
    others = [(number, "waiting", None, {}, 0, "") for number in (1, 2)]
    trial = study.ask()
    for name, value in (("parameters", '{"rate": 1}'), ("problem", "out of luck")):
        trial.set_user_attr(name, value)
    for evaluation, value in enumerate([0.4, 0.5, 0.25, 0.3]):
        trial.report(value, evaluation)
    assert described(study) == [(0, "running", best, {"rate": 1}, 4, "out of luck"), *others]
    study.tell(trial, state=TrialState.FAIL)
    memory.put_back_failed(study)
    memory.put_back_failed(study)  # when nothing has failed
    assert len(study.trials) == 4
    assert described(study) == [(0, "waiting", None, {"rate": 1}, 0, ""), *others]
    again = [study.ask() for _ in range(3)][-1]
    again.report(0.9, 0)
    study.tell(again, 0.7)
    assert described(study)[0] == (0, "complete", 0.7, {"rate": 1}, 1, "")


def test_a_run_that_was_put_into_the_study_twice_is_the_first_of_them_with_its_later_attempts():
    study = optuna.create_study()
    for _ in range(2):  # by two processes at once, neither of which sees the other's
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"run": 0}))
    trial = study.ask()
    study.tell(trial, state=TrialState.FAIL)
    failed = study.trials[trial.number]
    for _ in range(2):
        memory.put_back(study, failed)
    study.add_trial(optuna.create_trial(state=TrialState.WAITING))  # none of the sweep's
    assert [memory.is_repeated(study, each) for each in study.trials] == [False, True, False, True, True]
    study.tell(study.ask(), state=TrialState.FAIL)  # the second one
    assert [run.state for run in memory.list_runs(study)] == ["waiting"]
