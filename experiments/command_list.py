"""The commands behind results: IMP, one-shot masks, perturbed weights, and trainings from them."""

from dataclasses import dataclass, field
from pathlib import Path

from experiments import paper
from utils import files

NO_MODELS = ("--save_total_limit", 0)  # a table needs scores and masks
IMP_END = 90  # percent, the last sparsity of IMP's usual schedule 10, 20, ...


@dataclass(frozen=True)
class Command:
    """A shell command, the folder or file it writes, and the commands it needs the output of."""

    words: tuple[str, ...]
    output: Path
    needs: tuple["Command", ...] = ()

    @property
    def stage(self) -> int:
        """1, or one more than the latest stage among the commands that this one needs."""
        return 1 + max((command.stage for command in self.needs), default=0)


@dataclass(frozen=True)
class Tensors:
    """A mask to train with or weights to start from: name in folder names, file, its command."""

    name: str
    file: Path
    command: Command


@dataclass
class CommandList:
    """The commands requested so far, each once. A method adds a command and those it needs."""

    model: str  # hub name or folder of the pre-trained BERT
    data: Path | None  # folder with glue_data, SQuAD and pretrain_data; None: the hub
    out: Path  # folder of all output folders
    hyperparameters: dict[str, paper.Hyperparameters]  # by task
    names: dict[str, str]  # by task, in folder names: they show changed hyper-parameters
    imp_end: int  # percent, the last sparsity of IMP's usual schedule
    flags: list[str]  # appended to every training command
    mask_seeds: int = 0  # IMP runs per task that all seeds share; 0: one per seed
    commands: dict[Path, Command] = field(default_factory=dict)  # by output

    def imp(self, task: str, seed: int, end: int | None = None, rewind: int | None = 0) -> Command:
        """Add IMP to `end` percent (None: the usual end).

        It rewinds to `rewind` percent of a round (None: it does not rewind).
        """
        end, seed = end or self.imp_end, self._mask_seed(seed)
        steps, schedule = self.hyperparameters[task].steps(), sparsities(end)
        output = self.out / self.names[task] / f"{_imp_name(rewind)}-to{end}" / f"seed{seed}"
        script = {"squad": "squad_trans.py", "mlm": "LT_pretrain.py"}.get(task, "LT_glue.py")
        rounds = f"--max_steps {(len(schedule) + 1) * steps} --save_steps {steps}"
        if schedule != sparsities(IMP_END):
            rounds += " --sparsities " + " ".join(f"{percent / 100:g}" for percent in schedule)
        if rewind:
            rounds += f" --rewind_steps {max(1, round(rewind / 100 * steps))}"
        if rewind is None:
            rounds += " --no_rewind"
        words = ["python", "-u", script, "--output_dir", output, *self._training(task, seed)]
        words += [*rounds.split(), *NO_MODELS, *self.flags]
        return self._add(words, output)

    def ticket(self, task: str, seed: int, percent: int, rewind: int | None = 0) -> Tensors:
        """Add the IMP run that finds the mask of `percent` on `task`; return the mask."""
        usual = rewind == 0 and percent in sparsities(self.imp_end)
        command = self.imp(task, seed, None if usual else percent, rewind)
        step = len(sparsities(percent)) * self.hyperparameters[task].steps()
        file = command.output / files.model_folder_name(step) / files.MASK
        name = f"{_imp_name(rewind)}-{self.names[task]}-{percent}-seed{self._mask_seed(seed)}"
        return Tensors(name, file, command)

    def one_shot(self, percent: int, method: str = "magnitude", seed: int | None = None) -> Tensors:
        """Add the mask at `percent` that a method of oneshot.py makes; "random" has a `seed`."""
        name = f"{'omp' if method == 'magnitude' else method}-{percent}"
        name += "" if seed is None else f"-seed{seed}"
        return self._mask(name, ["--rate", f"{percent / 100:g}", "--method", method], seed or 0)

    def shuffled(self, mask: Tensors, seed: int) -> Tensors:
        """Add the mask with its entries permuted within each matrix."""
        words = ["--method", "shuffle", "--mask_dir", mask.file]
        own = "" if self._mask_seed(seed) == seed else f"-seed{seed}"  # of a mask that seeds share
        return self._mask(f"shuffled-{mask.name}{own}", words, seed, mask.command)

    def _mask(self, name: str, how: list[object], seed: int, *needs: Command) -> Tensors:
        output = self.out / "masks" / name
        words = ["python", "oneshot.py", "--weight", "pre", "--model", "glue", *how]
        words += ["--seed", seed, "--model_name_or_path", self.model, "--output_dir", output]
        return Tensors(name, output / files.MASK, self._add(words, output, *needs))

    def perturbed(self, mode: str, seed: int) -> Tensors:
        """Add theta_0'': shuffled or noisy pre-trained weights."""
        name = f"{mode}-seed{seed}"
        output = self.out / "weights" / f"{name}.pt"
        text = f"python pertub_weight.py --mode {mode} --seed {seed}"
        words = [*text.split(), "--model_name_or_path", self.model, "--output", output]
        return Tensors(name, output, self._add(words, output))

    def train(
        self,
        task: str,
        seed: int,
        mask: Tensors | None = None,
        init: Tensors | str = "pre",
        data_seed: int | None = None,
    ) -> Command:
        """Add the training of the subnetwork `mask` (None: the full network).

        It starts from pre-trained (`init` "pre"), random ("rand") or given weights. With
        `data_seed`, it keeps its model, for connectivity.py.
        """
        start, weights = (init, None) if isinstance(init, str) else ("pre", init)
        name = f"{weights.name if weights else start}.{mask.name if mask else 'full'}"
        order = "" if data_seed is None else f"-order{data_seed}"
        output = self.out / self.names[task] / name / f"seed{seed}{order}"
        script = {"squad": "squad_trans.py", "mlm": "pretrain_trans.py"}.get(task, "glue_trans.py")
        words: list[object] = ["python", "-u", script, "--dir", start]
        words += ["--mask_dir", mask.file] if mask else []
        words += ["--weight_pertub", weights.file] if weights else []
        words += ["--output_dir", output, *self._training(task, seed)]
        settings = self.hyperparameters[task]
        if settings.by_steps:
            words += ["--max_steps", settings.steps()]
        else:
            words += ["--num_train_epochs", f"{settings.epochs:g}"]
        words += ["--save_steps", 0]
        words += NO_MODELS if data_seed is None else ["--data_seed", data_seed]
        needs = [source.command for source in (mask, weights) if source]
        return self._add([*words, *self.flags], output, *needs)

    def connect(self, one: Command, other: Command) -> None:
        """Add the evaluation of the line between two trainings."""
        output = one.output.with_name(f"{one.output.name}-line") / files.CONNECTIVITY
        words: list[object] = ["python", "experiments/connectivity.py", one.output, other.output]
        self._add([*words, "--output", output], output, one, other)

    def stages(self) -> list[list[Command]]:
        """Return the commands by stage. Those of one stage do not need each other."""
        stages: dict[int, list[Command]] = {}
        for command in self.commands.values():
            stages.setdefault(command.stage, []).append(command)
        return [stages[number] for number in sorted(stages)]

    def _mask_seed(self, seed: int) -> int:
        return (seed - 1) % (self.mask_seeds or seed) + 1

    def _add(self, words: list[object], output: Path, *needs: Command) -> Command:
        return self.commands.setdefault(output, Command(tuple(map(str, words)), output, needs))

    def _training(self, task: str, seed: int) -> list[object]:
        """Return the flags that every training command has."""
        settings, name = self.hyperparameters[task], paper.NAMES[task]
        rows = f"--do_lower_case --max_seq_length {settings.length}"
        if task == "squad":
            data, rows = [], f"{rows} --doc_stride {settings.stride}"
            paths = {"train_file": "SQuAD/train-v1.1.json", "predict_file": "SQuAD/dev-v1.1.json"}
        elif task == "mlm":
            data, rows = ["--mlm"], f"--block_size {settings.length}"
            texts = {"train_data_file": "en.train", "eval_data_file": "en.valid"}
            paths = {flag: f"pretrain_data/{text}" for flag, text in texts.items()}
        else:
            data, paths = ["--task_name", name], {"data_dir": f"glue_data/{name}"}
        for flag, path in paths.items():
            data += [f"--{flag}", str(self.data / path)] if self.data else []
        model = ["--model_type", "bert", "--model_name_or_path", self.model]
        text = f"--do_train --do_eval --per_gpu_train_batch_size {settings.batch_size}"
        text += f" --learning_rate {settings.learning_rate:g} --seed {seed}"
        return [*data, *rows.split(), *model, *text.split()]


def sparsities(end: int) -> list[int]:
    """Return the percents after IMP's rounds: 10, 20, ... and finally `end`."""
    return [*range(10, end, 10), end]


def _imp_name(rewind: int | None) -> str:
    """Return the kind of IMP in folder names."""
    return {0: "imp", None: "imp-norewind"}.get(rewind, f"imp-rewind{rewind}")
