"""The GLUE tasks: sequence classification, and regression for STS-B."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertTokenizer

from utils import files
from utils.config import GlueConfig, ModelConfig, OutputConfig, TrainingConfig
from utils.data import glue, hub
from utils.data.rows import LabelledRows, warn_of_unknown
from utils.modeling import bert
from utils.modeling.attention import encode, pool
from utils.modeling.bert import BertTaskModel, SequenceClassifier
from utils.modeling.packing import Packed
from utils.modeling.runtime import Runtime
from utils.tasks.base import LabelledBatch, LabelledTask, tokenizer_and_config
from utils.tasks.metrics import glue_metrics


@dataclass
class GlueTask(LabelledTask):
    """A GLUE task and its data; labels are class numbers int64, for STS-B scores float32."""

    spec: glue.GlueSpec
    tokenizer: BertTokenizer
    bert_config: BertConfig
    train: LabelledRows | None
    dev: dict[str, LabelledRows]  # by split; empty without evaluation
    test: dict[str, LabelledRows] = field(default_factory=dict)  # by split; labels are indices

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
        tokenizer, config = tokenizer_and_config(model, data.do_lower_case, spec.classes, problem)
        texts = 2 if spec.text_b else 1
        bert.check_length(config, "--max_seq_length", data.max_seq_length, texts)

        length, folder = data.max_seq_length, Path(data.data_dir or "")
        counts = {"train": data.max_train_samples, "dev": data.max_eval_samples}

        def read(spec: glue.GlueSpec, splits: list[str]) -> dict[str, LabelledRows]:
            dataset, found = None, {}
            if splits and not data.from_files:
                dataset = hub.load_glue(spec, data, model.cache_dir)
            for split in splits:
                count = counts.get(split.partition("_")[0])
                if dataset is None:
                    name = str(folder / spec.files[split])
                    rows = glue.load(spec, folder, split, tokenizer, length, count)
                else:
                    name, examples = f"{dataset.name} {split}", hub.read_glue(spec, dataset, split)
                    rows = glue.tokenize(examples.first(count), tokenizer, length)
                warn_of_unknown(name, tokenizer, rows.rows.ids)
                found[split] = rows
            return found

        do_train, do_eval = training.do_train, training.do_eval
        tests = spec.for_test(folder if data.from_files else None)
        dev = read(spec, [s for s in spec.files if (do_train if s == "train" else do_eval)])
        test = read(tests, list(tests.files) if getattr(training, "do_predict", False) else [])
        return cls(spec, tokenizer, config, dev.pop("train", None), dev, test)

    @property
    def dev_rows(self) -> int:
        """Number of rows of the development set."""
        return sum(len(dev.rows) for dev in self.dev.values())

    def dev_digest(self) -> str:
        """Identify the sets to evaluate and to predict, "" without any."""
        return " ".join(rows.digest() for rows in (*self.dev.values(), *self.test.values()))

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
        """Return the metrics on the development set; write the predictions to `output`."""
        results: dict[str, float] = {}
        for split, dev in self.dev.items():
            logits = self.predict(model, dev.rows, runtime)
            predictions = logits[:, 0] if self.spec.labels is None else logits.argmax(1)
            spec, suffix = self.spec, self._metric_suffix(split)
            found = glue_metrics(spec.metric, predictions, dev.labels, spec.with_f1)
            results |= {key + suffix: value for key, value in found.items()}
            if not suffix:
                outcomes = {"predictions": predictions, "labels": dev.labels}
                self.save_outcomes(runtime, output, step, **outcomes)
        return results

    def write_predictions(self, model: BertTaskModel, runtime: Runtime, output: Path) -> list[Path]:
        """Write the files for gluebenchmark.com of the test sets that were loaded; return them."""
        written, names = [], files.SUBMISSIONS
        for split, test in self.test.items():
            logits = self.predict(model, test.rows, runtime)
            scores = np.clip(logits[:, 0], *self.spec.limits)
            predictions = [f"{score:.4f}" for score in scores]
            if self.spec.labels is not None:
                predictions = [self.spec.labels[number] for number in logits.argmax(1)]
            rows = zip(test.labels.astype(int), predictions, strict=True)
            lines = (f"{index}\t{prediction}\n" for index, prediction in rows)
            written.append(output / (names.get(split) or names.get(self.name, names["other"])))
            if runtime.is_main:
                files.write_text(written[-1], "index\tprediction\n" + "".join(lines))
        return written

    def _metric_suffix(self, split: str) -> str:
        """MNLI reports the matched and the mismatched set."""
        return "_mm" if self.name == "mnli" and split == "dev_mismatched" else ""
