"""The GLUE tasks: sequence classification, and regression for STS-B."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertTokenizer

from utils.config import GlueConfig, ModelConfig, OutputConfig, TrainingConfig
from utils.data import glue, hub
from utils.data.rows import LabelledRows, warn_of_unknown
from utils.modeling import bert
from utils.modeling.attention import encode, pool
from utils.modeling.bert import BertTaskModel, SequenceClassifier
from utils.modeling.packing import Packed
from utils.modeling.runtime import Runtime
from utils.tasks.base import LabelledBatch, LabelledTask, load_bert
from utils.tasks.metrics import glue_metrics


@dataclass
class GlueTask(LabelledTask):
    """A GLUE task and its data; labels are class numbers int64, for STS-B scores float32."""

    spec: glue.GlueSpec
    tokenizer: BertTokenizer
    bert_config: BertConfig
    train: LabelledRows | None
    dev: dict[str, LabelledRows]  # by split; empty without evaluation

    model_class = SequenceClassifier

    def __post_init__(self) -> None:
        self.name, self.score_key = self.spec.name, self.spec.metric
        self.logit_shape = (len(self.spec.classes),)

    @classmethod
    def load(
        cls, data: GlueConfig, model: ModelConfig, training: TrainingConfig, output: OutputConfig
    ) -> Self:
        """Load tokenizer, configuration and the splits needed. Raises UserError."""
        spec = glue.find_spec(data.task_name)
        problem = "regression" if spec.labels is None else "single_label_classification"
        tokenizer, config = load_bert(model, data.do_lower_case, spec.classes, problem)
        texts = 2 if spec.text_b else 1
        bert.check_length(config, "--max_seq_length", data.max_seq_length, texts)

        length = data.max_seq_length
        dataset = None if data.from_files else hub.load_glue(spec, data, model.cache_dir)

        def read(split: str) -> LabelledRows:
            count = data.max_train_samples if split == "train" else data.max_eval_samples
            if dataset is None:
                name = str(Path(data.data_dir or "") / spec.files[split])
                rows = glue.load(spec, Path(data.data_dir or ""), split, tokenizer, length, count)
            else:
                name, examples = f"{dataset.name} {split}", hub.read_glue(spec, dataset, split)
                examples = examples.first(count)
                rows = LabelledRows(glue.features(examples, tokenizer, length), examples.labels)
            warn_of_unknown(name, tokenizer, rows.rows.ids)
            return rows

        train = read("train") if training.do_train else None
        dev_splits = [split for split in spec.files if split != "train"] if training.do_eval else []
        return cls(spec, tokenizer, config, train, {split: read(split) for split in dev_splits})

    def dev_digest(self) -> str:
        """Identify the development set, "" without evaluation."""
        return " ".join(dev.digest() for dev in self.dev.values())

    def logits(self, model: BertTaskModel, packed: Packed) -> torch.Tensor:
        """Return the head's outputs, [B, classes]."""
        assert isinstance(model, SequenceClassifier)
        pooled = pool(model.bert, encode(model.bert, packed), packed.first)
        return model.classifier(model.dropout(pooled))

    def loss(self, model: BertTaskModel, batch: LabelledBatch) -> torch.Tensor:
        """Return the mean cross-entropy, or for STS-B the mean squared error, a tensor []."""
        logits = self.logits(model, batch.packed).float()
        if self.spec.labels is None:
            return F.mse_loss(logits.view(-1), batch.labels, reduction="sum") / batch.total
        return F.cross_entropy(logits, batch.labels, reduction="sum") / batch.total

    def evaluate(
        self, model: BertTaskModel, runtime: Runtime, output: Path, step: int | None
    ) -> dict[str, float]:
        """Return the metrics on the development set; writes no files."""
        results: dict[str, float] = {}
        for split, dev in self.dev.items():
            logits = self.predict(model, dev.rows, runtime)
            predictions = logits[:, 0] if self.spec.labels is None else logits.argmax(1)
            spec, suffix = self.spec, self._metric_suffix(split)
            found = glue_metrics(spec.metric, predictions, dev.labels, spec.with_f1)
            results |= {key + suffix: value for key, value in found.items()}
        return results

    def _metric_suffix(self, split: str) -> str:
        """MNLI reports the matched and the mismatched set."""
        return "_mm" if self.name == "mnli" and split == "dev_mismatched" else ""
