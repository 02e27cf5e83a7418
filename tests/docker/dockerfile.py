"""A Dockerfile read into its steps, as far as ours goes: FROM, ARG, ENV, RUN, COPY, WORKDIR, USER, HEALTHCHECK, CMD."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One instruction, with the stage that it belongs to."""

    instruction: str
    text: str


@dataclass
class Stage:
    """From one FROM to the next."""

    name: str
    steps: list[Step] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        """The text of the last such step."""
        return next(step.text for step in reversed(self.steps) if step.instruction == instruction)

    def healthcheck(self) -> list[str]:
        """Program and arguments."""
        command: list[str] = json.loads(self.last("HEALTHCHECK").partition("CMD ")[2])
        return command

    def command(self) -> list[str]:
        """Program and arguments."""
        command: list[str] = json.loads(self.last("CMD"))
        return command

    def environment(self) -> dict[str, str]:
        """What its ENV steps set, with what they refer to as it is."""
        pairs = [
            word.split("=", 1) for step in self.steps if step.instruction == "ENV" for word in shlex.split(step.text)
        ]
        return dict(pairs)


def read_dockerfile(path: Path) -> list[Stage]:
    """The stages, the first one being what comes before the first FROM."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    stages = [Stage("")]
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            stages.append(Stage(rest.partition(" AS ")[2]))
        elif instruction:
            stages[-1].steps.append(Step(instruction, rest.strip()))
    return stages


def words_of_copy(text: str) -> tuple[str | None, list[str], str]:
    """The stage that it copies from, the sources, and the target."""
    words = shlex.split(text)
    stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
    return stage, words[:-1], words[-1]
