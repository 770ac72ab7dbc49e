"""Every flag, declared once: frozen dataclasses, one per group; utils/cli.py parses them."""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, ClassVar

from utils.errors import UserError

# A number below these fits the libraries' integers, and as float32 with room to compute.
LIMITS = {int: (f"> {-(2**31)}", f"< {2**31}"), float: ("> -1e35", "< 1e35")}


def flag(default: Any, text: str, *, bounds: str = "", **options: Any) -> Any:
    """Declare a dataclass field as a flag of the same name.

    `default`: `...` makes the flag required. `bounds`: as in "> 0" or ">= 1", joined by commas;
    every number is between those of LIMITS too, unless `bounds` has others.
    `options`: those of argparse, and `negation`, a flag that undoes it.
    """
    default = dataclasses.MISSING if default is ... else default
    metadata = {"help": text, "bounds": bounds, "options": options}
    return dataclasses.field(default=default, metadata=metadata)


def defaults(**values: Any) -> Any:
    """Declare a group of flags in a script's config with other defaults."""
    return dataclasses.field(metadata={"defaults": values})


def _threads() -> Any:
    cores = os.cpu_count() or 1
    return flag(cores, "threads of the tokenizer (ours: all cores)", bounds=">= 1, < 4097")


def flag_values(config: Any) -> dict[str, Any]:
    """Return the value of every flag in a config, groups included, by name."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values |= flag_values(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return dict(sorted(values.items()))


def task_key(name: str) -> str:
    """Return a task's name as the hub spells it, sst2 of SST-2: equal for names of one task."""
    return name.lower().replace("-", "").replace("_", "")


@dataclass(frozen=True)
class ModelConfig:
    """Model."""

    model_type: str = flag("bert", "the architecture; the paper's is BERT", choices=["bert"])
    model_name_or_path: str | None = flag(
        "bert-base-uncased", "hub name or local folder of the pre-trained BERT"
    )
    config_name: str | None = flag(None, "hub name or folder of another configuration")
    tokenizer_name: str | None = flag(None, "hub name or folder of another vocabulary")
    cache_dir: str | None = flag(None, "folder for downloaded models and feature caches")

    @property
    def config_source(self) -> str:
        """Hub name or folder of the configuration."""
        return self._source(self.config_name)

    @property
    def tokenizer_source(self) -> str:
        """Hub name or folder of the vocabulary."""
        return self._source(self.tokenizer_name)

    def _source(self, name: str | None) -> str:
        source = name or self.model_name_or_path
        if source is None:
            raise UserError(
                "give --model_name_or_path, or --config_name and --tokenizer_name to start from "
                "random weights"
            )
        return source


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Source of a task's data: files or a dataset. A row is also a question or a block."""

    FILE_FLAGS: ClassVar[tuple[str, ...]] = ()

    dataset_name: str | None = flag(
        None,
        "without files: hub name or local folder (parquet, or from save_to_disk) of a dataset; "
        "left out, the hub's own for this task",
    )
    dataset_config_name: str | None = flag(None, "configuration of that dataset")
    max_train_samples: int | None = flag(
        None, "train on the first N rows, for a quick trial", bounds=">= 1"
    )
    max_eval_samples: int | None = flag(
        None, "evaluate on the first N rows of a set", bounds=">= 1"
    )

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in self.FILE_FLAGS if getattr(self, name) is not None]
        if given and (self.dataset_name or self.dataset_config_name):
            raise UserError(f"--dataset_name and {given[0]} exclude each other; give one")

    @property
    def from_files(self) -> bool:
        """Whether a flag names a file or folder of the data."""
        return any(getattr(self, name) is not None for name in self.FILE_FLAGS)


@dataclass(frozen=True)
class GlueConfig(DataConfig):
    """GLUE data."""

    FILE_FLAGS = ("data_dir",)

    task_name: str = flag(
        ..., "CoLA, MNLI, MNLI-MM, MRPC, QNLI, QQP, RTE, SST-2 (sst2), STS-B or WNLI, in any case"
    )
    data_dir: str | None = flag(
        None,
        "folder with the task's files as GLUE names them, such as train.tsv; left out, the rows "
        "come from the hub (nyu-mll/glue)",
    )
    max_seq_length: int = flag(128, "maximum WordPieces of a row, [CLS] and [SEP] included")
    do_lower_case: bool = flag(False, "lower-case the text, as uncased models need")


@dataclass(frozen=True)
class SquadConfig(DataConfig):
    """SQuAD data."""

    FILE_FLAGS = ("train_file", "predict_file")
    # True: an answer with a space that does not separate words, such as U+00A0, is not found
    only_word_spaces: ClassVar[bool] = False

    train_file: str | None = flag(
        None, "SQuAD JSON to train on; without files, the questions come from the hub"
    )
    predict_file: str | None = flag(None, "SQuAD JSON to evaluate on")
    max_seq_length: int = flag(384, "maximum WordPieces of a window, question included")
    doc_stride: int = flag(128, "WordPieces from one window's start to the next", bounds=">= 1")
    max_query_length: int = flag(64, "WordPieces of a question; the rest is cut off", bounds=">= 1")
    do_lower_case: bool = flag(False, "lower-case the text, as uncased models need")
    n_best_size: int = flag(20, "answers in the n-best list, and logits considered", bounds=">= 1")
    max_answer_length: int = flag(30, "maximum WordPieces of an answer", bounds=">= 1")
    version_2_with_negative: bool = flag(False, "SQuAD 2.0: some questions have no answer")
    null_score_diff_threshold: float = flag(
        0.0, "SQuAD 2.0: predict no answer if its score exceeds the best answer's by more than this"
    )
    verbose_logging: bool = flag(
        False, "report answers widened to whole words and questions without a valid answer"
    )
    threads: int = _threads()

    @property
    def v2_scores(self) -> bool:
        """Whether the official v2.0 rules score the answers, else those of v1.1."""
        return self.version_2_with_negative


@dataclass(frozen=True)
class TextConfig(DataConfig):
    """Text for masked language modelling."""

    FILE_FLAGS = ("train_data_file", "eval_data_file")

    train_data_file: str | None = flag(
        None, "UTF-8 text to train on, of any size; without files, WikiText-103 from the hub"
    )
    eval_data_file: str | None = flag(None, "UTF-8 text to evaluate on")
    mlm: bool = flag(False, "masked language modelling, the only objective here; must be given")
    mlm_probability: float = flag(0.15, "fraction of the tokens to predict", bounds="> 0, < 1")
    block_size: int | None = flag(
        None, "WordPieces of a block, [CLS] and [SEP] included; left out, 512 or what the model has"
    )
    line_by_line: bool = flag(False, "make each line a row instead of cutting blocks of a stream")
    threads: int = _threads()

    validation_split_percentage: float | None = flag(
        None,
        "percentage of the training rows to evaluate on if a dataset has no validation split; left "
        "out, 5",
        bounds="> 0, < 100",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mlm:
            raise UserError("BERT is trained on masked language modelling: give --mlm")


@dataclass(frozen=True)
class TrainingConfig:
    """Training and evaluation (defaults: Table 1)."""

    MODES: ClassVar[tuple[str, ...]] = ("do_train", "do_eval")
    do_train: bool = flag(False, "train")
    do_eval: bool = flag(False, "evaluate the trained model, or without --do_train the model given")
    evaluate_during_training: bool = flag(
        False, "with --do_eval: evaluate every --logging_steps steps as well"
    )
    eval_all_checkpoints: bool = flag(
        False, "evaluate every model saved in --output_dir; in training, when it is saved"
    )
    per_gpu_train_batch_size: int = flag(32, "training rows of a batch, per process", bounds=">= 1")
    per_gpu_eval_batch_size: int = flag(
        8,
        "rows of an MLM evaluation batch with --as_released; others are sized by tokens",
        bounds=">= 1",
    )
    gradient_accumulation_steps: int = flag(1, "batches of an optimizer step", bounds=">= 1")
    learning_rate: float = flag(
        2e-5, "initial learning rate of AdamW, decaying linearly to zero", bounds="> 0"
    )
    weight_decay: float = flag(
        0.0, "AdamW's weight decay, not applied to biases and LayerNorm", bounds=">= 0, < 1000"
    )
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon", bounds="> 0")
    max_grad_norm: float = flag(1.0, "norm to which gradients are clipped", bounds="> 0")
    warmup_steps: int | float = flag(
        0,
        "steps of linear warm-up (in each round of IMP); below 1, their share of all",
        bounds=">= 0",
    )
    num_train_epochs: float = flag(
        3.0,
        "passes over the training data, in all rounds of IMP together (as released, SQuAD: give "
        "40); with accumulation, whole optimizer steps only",
        bounds="> 0, < 1000000",
    )
    max_steps: int = flag(
        -1,
        "if positive, the total number of optimizer steps instead of --num_train_epochs; IMP uses "
        "the whole rounds that fit",
    )
    logging_steps: int = flag(
        500, "optimizer steps between two logged points (ours; 0: none)", bounds=">= 0"
    )
    save_steps: int | None = flag(
        None,
        "optimizer steps of one IMP round (left out: a tenth of the run), or of a fine-tuning "
        "between two saved models (left out or 0: the last only)",
        bounds=">= 0",
    )
    save_total_limit: int | None = flag(
        None,
        "keep the models of N checkpoints (0: not even the final one); masks stay",
        bounds=">= 0",
    )
    seed: int = flag(42, "seed of every random draw (ours: 42)", bounds=f">= 0, < {2**63}")
    data_seed: int | None = flag(
        None,
        "seed of row order, MLM's masked tokens and dropout, instead of --seed; tables skip such "
        "runs (for experiments/connectivity.py; ours)",
        bounds=f">= 0, < {2**63}",
    )
    no_cuda: bool = flag(False, "stay on the CPU")
    fp16: bool = flag(False, "mixed precision with float16 and loss scaling (GPU)")
    bf16: bool = flag(False, "mixed precision with bfloat16 (ours)")
    tf32: bool = flag(False, "float32 matrix products in TensorFloat-32 (GPU; ours)")
    compile: bool = flag(
        False,
        "compile the encoder layers, which takes a minute, and on one GPU capture CUDA graphs: for "
        "long runs (ours)",
        negation="--no_compile",
    )
    as_released: bool = flag(
        False, "follow the released code where it differs from the paper (docs/fidelity.md)"
    )
    local_rank: int = flag(-1, "set by torchrun; do not set it")

    def __post_init__(self) -> None:
        if not any(getattr(self, mode) for mode in self.MODES):
            raise UserError(f"nothing to do: give --{' or --'.join(self.MODES)}")
        if self.fp16 and self.bf16:
            raise UserError("--fp16 and --bf16 exclude each other; give one")

    @property
    def order_seed(self) -> int:
        """Seed of the noise of SGD: the order of the training rows, masked tokens and dropout."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def precision(self) -> str:
        """Autocast precision: "fp32", "fp16" or "bf16"."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "fp32"


@dataclass(frozen=True)
class ImpConfig:
    """Iterative magnitude pruning (Algorithm 1)."""

    sparsities: tuple[float, ...] | None = flag(
        None, "sparsities after the rounds, instead of 0.1 0.2 ... 0.9", nargs="+", metavar="S"
    )
    rewind_steps: int = flag(0, "i: rewind to the weights after i steps of training (theta_i)")
    no_rewind: bool = flag(
        False, "standard pruning: continue from each round's final weights (Table 3)"
    )


@dataclass(frozen=True)
class SubnetworkConfig:
    """Subnetwork."""

    dir: str | None = flag(
        ..., "start from the pre-trained weights, or draw them by --seed", choices=["pre", "rand"]
    )
    mask_dir: str | None = flag(
        None,
        "mask file of the subnetwork, or folder or hub name of an exported ticket; left out, the "
        "dense model",
    )
    weight_pertub: str | None = flag(
        None, "file of encoder weights to start from, as pertub_weight.py writes it"
    )


@dataclass(frozen=True)
class OutputConfig:
    """Output and resuming."""

    output_dir: str = flag(..., "folder for everything that this run writes")
    overwrite_output_dir: bool = flag(
        False,
        "replace a finished or different run in --output_dir (its IMP rounds move to replaced-N); "
        "an unfinished run of this command still resumes",
    )
    overwrite_cache: bool = flag(False, "rebuild the feature caches")
    should_continue: bool = flag(False, "fail if this command is unfinished and has no checkpoint")
    restart: bool = flag(False, "start an unfinished run from scratch")
    checkpoint_minutes: float = flag(
        10.0, "minutes between two checkpoints to resume from (ours)", bounds=">= 0"
    )

    def __post_init__(self) -> None:
        if self.should_continue and self.restart:
            raise UserError("--should_continue and --restart exclude each other; give one")


@dataclass(frozen=True)
class RunConfig:
    """The groups of flags that every training script has."""

    model: ModelConfig
    training: TrainingConfig
    output: OutputConfig
