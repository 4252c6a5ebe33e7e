"""When a training that is sized in time ends."""

from datetime import timedelta
from types import SimpleNamespace

from pytorch_lightning.callbacks import Timer

from keypoint_detection.train.trainer import SharedTimer


def test_several_processes_ask_whether_the_time_is_over_every_tenth_step_but_for_the_first_ones():
    asked = []
    trainer = SimpleNamespace(
        world_size=2, should_stop=False, strategy=SimpleNamespace(broadcast=lambda over: asked.append(over) or over)
    )
    timer, steps = SharedTimer(duration=timedelta(hours=1), verbose=False), []
    for trainer.global_step in range(1, 35):
        before = len(asked)
        timer.on_train_batch_end(trainer, None)
        steps += [trainer.global_step] * (len(asked) - before)
    assert steps == [*range(1, 11), 20, 30]
    assert not trainer.should_stop


def test_the_time_of_a_checkpoint_is_where_lightnings_own_timer_leaves_it():
    timer = Timer(duration=timedelta(hours=1))
    assert SharedTimer(duration=timedelta(hours=1)).state_key == timer.state_key
