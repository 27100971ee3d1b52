"""All commands: name, where the function is, and its line in `--help`. Nothing here is imported before it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PROGRAM: Final = "llamafarm"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A command: `target` is `module:function`."""

    target: str
    help: str


@dataclass(frozen=True, slots=True)
class Branch:
    """A group of commands; `default` is the one that runs when only the group is named."""

    help: str
    commands: Mapping[str, Leaf]
    default: str = ""


COMMANDS: Final[Mapping[str, Leaf | Branch]] = {
    "train": Leaf("llamafarm.cli.train:train", "Train what a strategy describes."),
    "finetune": Branch(
        "The same training, in the guide's other spelling.",
        {
            "start": Leaf("llamafarm.cli.train:train", "Same as `train`."),
            "resume": Leaf("llamafarm.cli.train:resume", "Go on with a run that was interrupted."),
            "export": Leaf("llamafarm.cli.export:export", "Same as `export`."),
            "evaluate": Leaf("llamafarm.cli.evaluate:evaluate", "Same as `evaluate`."),
        },
    ),
    "verify-resume": Leaf(
        "llamafarm.cli.verify_resume:verify_resume", "Prove on a strategy that a resumed run is exact."
    ),
    "replay-step": Leaf("llamafarm.cli.replay_step:replay_step", "Take a step that broke again, and say what broke."),
    "reproduce": Leaf("llamafarm.cli.reproduce:reproduce", "Carry out a run again, and say whether it ends the same."),
    "runs": Branch(
        "Runs on this machine.",
        {
            "list": Leaf("llamafarm.cli.runs:list_", "List runs, the last one first."),
            "show": Leaf("llamafarm.cli.runs:show", "Show a run and whether its checkpoints are whole."),
            "diff": Leaf("llamafarm.cli.runs:diff", "Show where two runs part."),
        },
        default="list",
    ),
    "generate": Leaf("llamafarm.cli.generate:generate", "Answer a prompt with a base model or a trained one."),
    "capture": Leaf("llamafarm.cli.capture:capture", "Write the matrices of a model's layers for one row."),
    "evaluate": Leaf("llamafarm.cli.evaluate:evaluate", "Measure a trained model beside its base."),
    "plot-loss": Leaf("llamafarm.cli.plot_loss:plot_loss", "Draw the losses of a run."),
    "export": Leaf("llamafarm.cli.export:export", "Write a trained model for other programs, checked."),
    "verify-serve": Leaf("llamafarm.cli.verify_serve:verify_serve", "Compare a server's tokens with training's."),
    "check-data": Leaf("llamafarm.cli.check_data:check_data", "Check a dataset, and write a cleaned copy of it."),
    "datasplit": Leaf("llamafarm.cli.datasplit:datasplit", "Split a dataset into training and held-out rows."),
    "datagen": Branch(
        "Generate datasets.",
        {"smart-home": Leaf("llamafarm.cli.datagen:smart_home", "Commands for a smart home, in several languages.")},
    ),
    "validate": Leaf("llamafarm.cli.validate:validate", "Check strategy files and show every error at once."),
    "explain": Leaf("llamafarm.cli.explain:explain", "Show every setting of a strategy and where it comes from."),
    "selfcheck": Leaf("llamafarm.cli.selfcheck:selfcheck", "Prove that training computes what it should."),
    "estimate": Leaf("llamafarm.cli.estimate:estimate", "Say whether training fits, and how long it takes."),
    "inspect": Leaf("llamafarm.cli.inspect:inspect", "Show rows as the model will see them, and what is trained."),
    "find-split": Leaf("llamafarm.cli.find_split:find_split", "Find the token ids around answers, as flags to paste."),
    "strategies": Branch(
        "Ready-made strategies.",
        {
            "list": Leaf("llamafarm.cli.strategies:list_", "List what can be trained by name."),
            "show": Leaf("llamafarm.cli.strategies:show", "Print a strategy's file."),
            "copy": Leaf("llamafarm.cli.strategies:copy", "Copy a strategy's file, to make it yours."),
            "import": Leaf("llamafarm.cli.import_strategy:import_", "Turn a file of LLaMA-Factory into a strategy."),
        },
        default="list",
    ),
    "plugins": Branch(
        "Installed components.",
        {"list": Leaf("llamafarm.cli.plugins:list_", "List components, and plugins that could not be loaded.")},
        default="list",
    ),
    "backends": Branch(
        "Programs that fine-tuners run in environments of their own.",
        {
            "list": Leaf("llamafarm.cli.backends:list_", "List backends, and whether they are set up."),
            "setup": Leaf("llamafarm.cli.backends:setup", "Install a backend, or take one that is installed."),
            "check": Leaf("llamafarm.cli.backends:check", "Check that a backend works, and computes what ours does."),
            "remove": Leaf("llamafarm.cli.backends:remove", "Delete what `setup` made."),
        },
        default="list",
    ),
    "schema": Leaf("llamafarm.cli.schema:schema", "Print the JSON Schema of strategies, for editors."),
    "doctor": Leaf("llamafarm.cli.doctor:doctor", "Check what this machine can do, and what is missing."),
}
