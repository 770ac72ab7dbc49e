"""Tasks on small data with a masked BERT of three narrow layers, and their padded variants."""

import dataclasses

import numpy as np
import tiny
import torch

from utils.config import (
    GlueConfig,
    ModelConfig,
    OutputConfig,
    SquadConfig,
    TextConfig,
    TrainingConfig,
)
from utils.modeling.bert import load_model
from utils.modeling.runtime import Runtime
from utils.pruning import masks
from utils.released import pack_padded
from utils.tasks.glue import GlueTask
from utils.tasks.mlm import MlmTask
from utils.tasks.squad import SquadTask

CPU = torch.device("cpu")
RUNTIME = Runtime(CPU)
NAMES = ["MRPC", "STS-B", "squad", "mlm"]
LENGTH = 48
TRAINING = TrainingConfig(do_train=True, do_eval=True, learning_rate=1e-3)


def training(**changes) -> TrainingConfig:
    return dataclasses.replace(TRAINING, **changes)


def make_data(folder, **bert):
    """Write the model and the data of every task to `folder` and return it."""
    tiny.bert(folder / "bert", **{"layers": 3, **bert})
    for name in ("MRPC", "STS-B"):
        tiny.glue(folder / name, name, train=40, dev=30)
    tiny.squad(folder / "squad", train=6, dev=4)
    tiny.text(folder / "text")
    return folder


def load_task(folder, name, cls=None, lower_case=True, line_by_line=True, **limits):
    """Load a task of `make_data`; `cls` is a subclass of its class, `limits`: --max_*_samples."""
    if name == "squad":
        cls, file = cls or SquadTask, folder / "squad" / "{}-v1.1.json"
        data = SquadConfig(
            train_file=str(file).format("train"),
            predict_file=str(file).format("dev"),
            max_seq_length=LENGTH,
            doc_stride=16,
            max_query_length=12,
            do_lower_case=lower_case,
            threads=1,
        )
    elif name == "mlm":
        cls, text = cls or MlmTask, folder / "text"
        data = TextConfig(
            train_data_file=str(text / "en.train"),
            eval_data_file=str(text / "en.valid"),
            mlm=True,
            block_size=24,
            line_by_line=line_by_line,
            threads=1,
        )
    else:
        cls, data = cls or GlueTask, GlueConfig(name, str(folder / name), LENGTH, lower_case)
    data = dataclasses.replace(data, **limits)
    model = ModelConfig(model_name_or_path=str(folder / "bert"), cache_dir=str(folder / "cache"))
    return cls.load(data, model, TRAINING, OutputConfig(output_dir=str(folder / "out")))


def masked_model(folder, task, sparsity=0.3):
    """Return the task's model under a mask."""
    model = load_model(task.model_class, str(folder / "bert"), task.bert_config, 1)
    masks.attach(model)
    masks.prune_to(model, sparsity)
    return model


def padded(packed, lengths, width):
    """Return the packed rows as a padded batch: ids, types, attended, int64 [B, W]."""
    slots = torch.cat([row * width + torch.arange(int(n)) for row, n in enumerate(lengths)])
    values = (packed.ids[0], packed.types[0], torch.ones_like(slots))
    grids = (torch.zeros(len(lengths) * width, dtype=torch.int64) for _ in values)
    return [
        grid.index_copy(0, slots, value).view(len(lengths), width)
        for grid, value in zip(grids, values, strict=True)
    ]


class PaddedGlue(GlueTask):
    def _pack(self, rows, indices):
        return pack_padded(rows, indices, LENGTH)


class PaddedSquad(SquadTask):
    def _pack(self, rows, indices):
        return pack_padded(rows, indices, LENGTH)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close_gradients(found, expected, tolerance):
    """Relative to the largest gradient of each matrix; key biases have rounding errors only."""
    assert found.keys() == expected.keys()
    smallest = 1e-2 * max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        error = (found[name] - value).abs().max()
        assert error <= tolerance * max(smallest, value.abs().max()), name


def distinct_lengths(task, rows):
    return len(set(np.asarray(task.row_lengths(rows)).tolist()))
