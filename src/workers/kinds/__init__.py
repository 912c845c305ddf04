"""What a kind of job is to the runner child, and where each kind lives.

A kind is one module with `run(job, progress) -> JobOutput`; its parameters are a struct in `domain/kinds.py`. It is
imported when its first job comes, so that a runner that only does nothing never loads NumPy.

A kind that does several jobs cheaper at once than one by one also has `run_many(jobs, progress)`, see TogetherModule.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol, TypeVar, cast

import msgspec
from msgspec import Struct, field

P = TypeVar("P", bound=Struct)

MODULES = {
    "noop": ".noop",
    "layer-photo-realistic": ".layer_photo_realistic",
    "layer-painterly": ".layer_painterly",
    "embed": ".embed",
    "inspect": ".inspect",
}

Progress = Callable[[int, str], None]  # percent done (0 to 100), and what is being done


class InputFile(Struct, frozen=True):
    """A file that a job reads; already scanned and found clean."""

    path: str
    content_type: str


class ModelFile(Struct, frozen=True):
    """The model version pinned at submit. `manifest` is as `adapters/builtin/*.json` has it."""

    path: str
    sha256: str
    manifest: dict[str, Any] = field(default_factory=dict)


class JobInput(Struct, frozen=True):
    """What the runner child is asked.

    Attributes:
        params: of the kind; checked against its struct again in the child.
        output_dir: an existing directory that takes the outputs and nothing else; "" for a kind without outputs.
        intra_op_threads: how many cores a model session may use.
        cpu_s_max: seconds of all cores together; 0 sets no limit anew.
    """

    job_id: str
    kind: str
    params: dict[str, Any] = field(default_factory=dict)
    inputs: list[InputFile] = field(default_factory=list)
    model: ModelFile | None = None
    output_dir: str = ""
    intra_op_threads: int = 1
    cpu_s_max: float = 0.0


class OutputFile(Struct, frozen=True):
    """A file that a kind wrote into `output_dir` under this plain name."""

    name: str
    content_type: str


class Receipt(Struct, frozen=True):
    """Where a result comes from, as far as the process that computed it knows.

    Attributes:
        execution_provider: the one that the session really runs on, not the one asked for.
    """

    execution_provider: str
    runtime: str
    runtime_version: str
    model_sha256: str
    batch_size: int
    intra_op_threads: int


class JobOutput(Struct, frozen=True):
    """What a kind hands back.

    Attributes:
        manifest: the kind's own account of its outputs.
        timings: names end in `_ms`.
        receipt: none when no model was used.
    """

    outputs: list[OutputFile] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    receipt: Receipt | None = None


class KindFailed(Exception):
    """The job failed.

    Attributes:
        code: stable, for programs.
        message: for the person who submitted it: no paths, no stack.
        retryable: another attempt at the same job may do better.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable


class KindModule(Protocol):
    def run(self, job: JobInput, progress: Progress) -> JobOutput: ...


class TogetherModule(KindModule, Protocol):
    """A kind whose jobs gain by being run at once; its `together` in `domain/kinds.py` says so."""

    def run_many(self, jobs: Sequence[JobInput], progress: Progress) -> list[JobOutput | KindFailed]:
        """One for each job, in their order, as `run` would have said it: what one job fails of is its own answer, and
        leaves the others right. If it raises (too little memory for all of them, say), each job is run alone.
        """


def module_of(kind: str) -> KindModule:
    """The module that runs `kind`.

    Raises:
        KindFailed: `unknown_kind`: this runner is older than the job, or newer; `kind_unavailable`: a package that
            the kind needs is not installed here.
    """
    name = MODULES.get(kind)
    if name is None:
        raise KindFailed("unknown_kind", f"this worker does not know the kind {kind!r}")
    try:
        return cast("KindModule", import_module(name, __name__))
    except ModuleNotFoundError as error:
        message = f"this worker has no {error.name}, which {kind!r} needs"
        raise KindFailed("kind_unavailable", message, retryable=True) from error


def params_of(job: JobInput, struct: type[P]) -> P:
    """The job's parameters as `struct`, defaults filled in.

    Raises:
        KindFailed: `rule_violated`.
    """
    try:
        return msgspec.convert(job.params, struct)
    except msgspec.ValidationError as error:
        raise KindFailed("rule_violated", str(error)) from error
