"""SQuAD v1.1 and v2.0: question answering by the start and the end of a span."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertTokenizer

from utils.config import ModelConfig, OutputConfig, SquadConfig, TrainingConfig
from utils.data import hub, squad_windows
from utils.data.rows import LabelledRows, content_digest, warn_of_unknown
from utils.data.squad import SquadExample, read_questions
from utils.data.squad_windows import SquadWindows
from utils.modeling import bert
from utils.modeling.attention import encode
from utils.modeling.bert import BertTaskModel, QuestionAnswerer
from utils.modeling.packing import Packed
from utils.modeling.runtime import Runtime
from utils.tasks import squad_answers
from utils.tasks.base import LabelledBatch, LabelledTask, input_file, tokenizer_and_config

Dev = tuple[list[SquadExample], SquadWindows]


@dataclass
class SquadTask(LabelledTask):
    """SQuAD and its data; the labels of a window are the answer's first and last token."""

    config: SquadConfig
    tokenizer: BertTokenizer
    bert_config: BertConfig
    train: LabelledRows | None  # labels [2, W]: start and end; 0 for none
    dev: Dev | None  # None without evaluation

    name, score_key = "squad", "f1"
    scale = 1.0  # metrics are in percent
    columns = ("f1", "exact")
    model_class = QuestionAnswerer

    def __post_init__(self) -> None:
        self.logit_shape = (self.config.max_seq_length, 2)

    @classmethod
    def load(
        cls, data: SquadConfig, model: ModelConfig, training: TrainingConfig, output: OutputConfig
    ) -> Self:
        """Load tokenizer, configuration and the windows of the files needed. Raises UserError."""
        train_file = input_file(training, "do_train", data, "train_file")
        dev_file = input_file(training, "do_eval", data, "predict_file")
        tokenizer, config = tokenizer_and_config(model, data.do_lower_case)
        bert.check_length(config, "--max_seq_length", data.max_seq_length, texts=2)
        v2, cache_dir = data.version_2_with_negative, model.cache_dir
        dataset: Any = None if data.from_files else hub.load_squad(data, v2, cache_dir)

        def read(file: Path | None, split: str, count: int | None) -> Dev:
            questions = read_questions(file, v2) if file else hub.read_squad(dataset, split, v2)
            questions, is_train = questions.first(count), split == "train"
            overwrite = output.overwrite_cache
            found = squad_windows.load(questions, tokenizer, data, is_train, cache_dir, overwrite)
            warn_of_unknown(questions.name, tokenizer, found.ids)
            return questions.examples, found

        train = dev = None
        if training.do_train:
            _, windows = read(train_file, "train", data.max_train_samples)
            train = LabelledRows(windows.rows, windows.labels)
        if training.do_eval:
            dev = read(dev_file, "validation", data.max_eval_samples)
        return cls(data, tokenizer, config, train, dev)

    @property
    def dev_rows(self) -> int:
        """Number of windows of the development set."""
        return len(self.dev[1]) if self.dev else 0

    def dev_digest(self) -> str:
        """Identify the development set, "" without evaluation."""
        if self.dev is None:
            return ""
        examples, windows = self.dev
        texts = np.frombuffer(repr(examples).encode(), dtype=np.uint8)
        return content_digest(windows.starts, windows.ids, texts)

    def logits(self, model: BertTaskModel, packed: Packed) -> torch.Tensor:
        """Return start and end logits, float32 [B, W, 2], -inf beyond a window's tokens."""
        assert isinstance(model, QuestionAnswerer)
        flat = model.qa_outputs(encode(model.bert, packed)).float()
        grid = flat.new_full((len(packed.lengths) * packed.width, 2), -torch.inf)
        windows = grid.index_copy(0, packed.slots, flat).view(-1, packed.width, 2)
        return windows[: len(packed.first)]

    def loss(self, model: BertTaskModel, batch: LabelledBatch) -> torch.Tensor:
        """Return the mean of the cross-entropies of start and end, a tensor []."""
        logits, labels = self.logits(model, batch.packed), batch.labels.long()
        start = F.cross_entropy(logits[..., 0], labels[0], reduction="sum") / batch.total
        end = F.cross_entropy(logits[..., 1], labels[1], reduction="sum") / batch.total
        return (start + end) / 2

    def evaluate(
        self, model: BertTaskModel, runtime: Runtime, output: Path, step: int | None
    ) -> dict[str, float]:
        """Return exact match and F1 in percent; write answers and n-best lists to `output`."""
        assert self.dev is not None, "loaded without do_eval"
        examples, windows = self.dev
        logits = self.predict(model, windows.rows, runtime)
        start, end = logits[..., 0], logits[..., 1]
        answers = squad_answers.best_answers(examples, windows, start, end, self.config)
        if runtime.is_main:
            answers.write(output, "" if step is None else str(step))
        scores = squad_answers.question_scores(examples, answers.texts, self.config)
        self.save_outcomes(runtime, output, step, exact=scores[:, 0], f1=scores[:, 1])
        odds = answers.null_odds
        return squad_answers.squad_metrics(examples, answers.texts, self.config, odds, scores)
