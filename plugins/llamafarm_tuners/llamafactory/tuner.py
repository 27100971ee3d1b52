"""The fine-tuner `llamafactory`; nothing of LLaMA-Factory is imported here, it runs in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llamafarm.api import Decision, FineTuner, PreparedData, RunContext, RunPlan, TrainingResult, installed
from llamafarm.errors import PluginError, Problem
from llamafarm.models.locate import locate
from llamafarm_tuners.llamafactory.checks import check
from llamafarm_tuners.llamafactory.config import ADAPTER_KEYS, LlamaFactoryConfig
from llamafarm_tuners.llamafactory.course import Course
from llamafarm_tuners.llamafactory.environment import BACKEND, PPO, backend_for, child_environment
from llamafarm_tuners.llamafactory.failures import failure
from llamafarm_tuners.llamafactory.older import older_files
from llamafarm_tuners.llamafactory.process import run_process
from llamafarm_tuners.llamafactory.result import adopt, checkpoints, finish, log_until, put_before
from llamafarm_tuners.llamafactory.rows import Form, form_of, write_rows
from llamafarm_tuners.llamafactory.translate import stage_of, tokenizes_itself, translate


class LlamaFactoryTuner(FineTuner[LlamaFactoryConfig]):
    """Trains with the real LLaMA-Factory, in a process and an environment of its own."""

    name = "llamafactory"
    adapter_kinds = frozenset({"lora", "dora", "full", "freeze"})
    backends = (BACKEND, PPO)
    resumes = True

    @classmethod
    def default_method(cls, given: Mapping[str, Any]) -> str | None:
        """Lora, unless LLaMA-Factory's own keys say how parameters are adapted."""
        return None if ADAPTER_KEYS & given.keys() else "lora"

    def check(self, plan: RunPlan) -> Iterable[Problem | Decision]:
        """Refuse what LLaMA-Factory cannot do, with the alternative; explain what it decides."""
        return check(self.config, plan)

    def fit(self, plan: RunPlan, data: PreparedData, run: RunContext) -> TrainingResult:
        """Convert the rows, let LLaMA-Factory train, and bring what it leaves into the run directory.

        Raises:
            PluginError: If it is not set up, or ends without a result.
            LlamaFarmError: For what it could not use: rows, model, settings, memory.
            KeyboardInterrupt: After the step in which the user asked to stop.
        """
        backend = backend_for(stage_of(self.config))
        state = installed(backend)
        if state is None:
            hint = f"run: llamafarm backends setup {backend.name}"
            raise PluginError.of("LF-PLUGIN-070", "LLaMA-Factory is not set up", hint=hint)
        place = plan.output_dir.absolute() / "llamafarm" / "llamafactory"
        base = self.config.base_model.huggingface_id or ""
        start = self._start(plan, run, place)
        before = log_until(plan.output_dir, _step(start)) if start else []
        arguments = self._prepare(plan, data, run, place)
        if start:
            arguments["resume_from_checkpoint"] = str(start.absolute())
        text = json.dumps(arguments, indent=2, ensure_ascii=False)
        (place / "train.yaml").write_text(f"{text}\n", encoding="utf-8")  # JSON is YAML
        output = Path(arguments["output_dir"])
        board = self._board(plan.output_dir)
        course = Course(run, locate(base).public_name, arguments["finetuning_type"], board, plan.output_dir)
        run.emit("phase", name="starting LLaMA-Factory")
        try:
            code, log = run_process(
                state.python, place / "train.yaml", place, self._environment(state.python, plan), run, course.hear
            )
            names = [path.name for path in checkpoints(output)]
        finally:
            adopt(output, plan.output_dir, base)
            shutil.rmtree(place / "older", ignore_errors=True)
            put_before(before, plan.output_dir)
            if board is not None:
                board.close()
        if code != 0:
            raise failure(code, course.error, log, names, plan, kept=course.step > 0)
        if course.stopped:
            if stage_of(self.config) == "ppo":
                run.emit("notice", message=f"stage ppo cannot go on later; the model of step {course.step} is kept")
            raise KeyboardInterrupt
        run.emit("phase", name="saving")
        return finish(plan, base, arguments, course)

    def _start(self, plan: RunPlan, run: RunContext, place: Path) -> Path | None:
        """The checkpoint from which a run goes on; what a process that was killed left is brought to its place."""
        if plan.resume is None:
            return None
        adopt(place / "output", plan.output_dir, self.config.base_model.huggingface_id or "")
        shutil.rmtree(place, ignore_errors=True)
        found = plan.resume.checkpoint or next(reversed(checkpoints(plan.output_dir)), None)
        reasons = ["the exactness of LLaMA-Factory's resuming is not proved"] if found else []
        run.emit("resumed", step=_step(found) if found else 0, exact=not reasons, reasons=reasons)
        where = f"goes on from {found.name}" if found else "there is no checkpoint yet: it starts from the beginning"
        run.emit("notice", message=f"LLaMA-Factory {where}")
        return found

    def _prepare(self, plan: RunPlan, data: PreparedData, run: RunContext, place: Path) -> dict[str, Any]:
        """Write rows and arguments."""
        form, held_out, tokens = Form(), bool(data.eval), None
        (place / "data").mkdir(parents=True)
        if tokenizes_itself(self.config):
            stage = stage_of(self.config)
            form = form_of([*data.train, *data.eval], stage)
            write_rows(place / "data", data.train, data.eval, stage)
        else:
            from llamafarm_tuners.llamafactory._tokenized import write_tokens

            held_out = write_tokens(self.config, data, run, place / "tokens")
            tokens = place / "tokenized"
        if held_out and stage_of(self.config) == "ppo":
            run.emit("notice", message=f"stage ppo evaluates nothing: {len(data.eval)} held-out rows are not used")
            held_out = False
        if held_out and "val_size" in self.config.arguments:
            run.emit("notice", message="val_size is not used: rows are held out already")
        arguments = translate(
            self.config,
            plan,
            form=form,
            held_out=held_out,
            data=place / "data",
            output=place / "output",
            tokens=tokens,
        )
        if stage_of(self.config) == "ppo":
            for name in {"model_name_or_path", "reward_model"} & arguments.keys():
                if Path(arguments[name], "config.json").is_file():
                    arguments[name] = str(older_files(Path(arguments[name]), place.absolute() / "older" / name))
        live = plan.output_dir / "trainer_log.jsonl"
        live.unlink(missing_ok=True)
        live.symlink_to(Path("llamafarm") / "llamafactory" / "output" / live.name)
        return arguments

    def _environment(self, python: Path, plan: RunPlan) -> dict[str, str]:
        base = self.config.base_model
        hub = locate(base.huggingface_id or "").kind == "hub"
        found = child_environment(python, os.environ, hub=hub, one_gpu=plan.device.type == "cuda")
        if hub and base.token is not None:
            found["HF_TOKEN"] = base.token.get_secret_value()
        if plan.device.type == "cpu":
            found["CUDA_VISIBLE_DEVICES"] = ""
        return found

    def _board(self, folder: Path) -> Any:
        if "tensorboard" not in self.config.training.report_to or find_spec("tensorboard") is None:
            return None
        from llamafarm_tuners.llamafactory._board import board

        return board(folder)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
