"""Scripts read data and models from a hub; what goes wrong there ends in one line, soon."""

import subprocess
import sys

import hub_data
import launch
import pytest
import tiny
from hub_server import HubServer
from launch import ROOT, fresh
from refusals import assert_refused


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Folders of a dataset and a model."""
    folder = tmp_path_factory.mktemp("repositories")
    tiny.glue(folder / "RTE", "RTE", train=16, dev=8)
    tiny.bert(folder / "bert")
    hub_data.repository(folder / "glue", "rte", hub_data.glue(folder / "RTE", "RTE"))
    return folder


@pytest.fixture(scope="module")
def hub(repositories):
    with HubServer() as server:
        server.add("datasets/nyu-mll/glue", repositories / "glue")
        server.add("org/bert", repositories / "bert")
        server.add("datasets/org/broken", repositories / "glue")
        yield server


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def start(hub, cache):
    """Starts scripts as processes that reach only the small hub."""
    launcher = launch.Launcher(hub.environment(cache))
    yield launcher
    launcher.close()


def flags(out, **given):
    """Train on RTE from the hub, with some flags replaced; None: without this flag."""
    good = {"task_name": "RTE", "model_name_or_path": "org/bert", "output_dir": out, "dir": "pre"}
    good |= {"max_seq_length": 32, "max_steps": 2, "per_gpu_train_batch_size": 4}
    words = ["--do_train", "--do_eval", "--do_lower_case", "--no_cuda"]
    for name, value in {**good, **given}.items():
        words += [] if value is None else [f"--{name}", value]
    return words


def losses(out):
    return [row["metrics"] for row in launch.results(out)]


def test_data_and_model_from_the_hub_train_as_local_ones(start, repositories, tmp_path):
    ended = start("glue_trans.py", *flags(tmp_path / "hub"), cwd=tmp_path)
    assert ended.code == 0 and ended.errors() == [], ended.err
    local = {"data_dir": repositories / "RTE", "model_name_or_path": repositories / "bert"}
    ended = start("glue_trans.py", *flags(tmp_path / "local", **local), cwd=tmp_path)
    assert ended.code == 0, ended.err
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("hub", "local"))
    assert one == two


@pytest.fixture
def down(hub):
    """The hub answers no more."""
    hub.requests.clear()
    hub.down = True
    yield hub
    hub.down = False


@pytest.fixture(scope="module")
def scores(start, tmp_path_factory):
    """The rows of a run with the hub, which fills the cache."""
    folder = tmp_path_factory.mktemp("first")
    ended = start("glue_trans.py", *flags(folder / "out"), cwd=folder)
    assert ended.code == 0 and ended.errors() == [], ended.err
    return losses(folder / "out")


def test_the_cache_serves_if_the_hub_does_not_answer(start, scores, down, tmp_path):
    ended = start("glue_trans.py", *flags(tmp_path / "out"), cwd=tmp_path)
    assert ended.code == 0 and ended.errors() == [], ended.err
    assert losses(tmp_path / "out") == scores
    assert len(down.requests) == 1  # no retries, although many files are looked for


def test_the_cache_serves_with_hf_hub_offline(start, hub, scores, cache, tmp_path):
    environment = hub.environment(cache, HF_HUB_OFFLINE="1")
    hub.requests.clear()
    words = flags(tmp_path / "out")
    ended = fresh("glue_trans.py", *words, cwd=tmp_path, environment=environment)
    assert ended.code == 0 and ended.errors() == [], ended.err
    assert losses(tmp_path / "out") == scores
    assert hub.requests == []


REFUSED = {
    "no dataset": ({"dataset_name": "org/nothing"}, ["org/nothing", "doesn't exist", "name"]),
    "no configuration": ({"dataset_config_name": "sst"}, ["sst", "rte", "--dataset_config_name"]),
    "broken transfer": ({"dataset_name": "org/broken"}, ["org/broken", "peer", "rerun"]),
    "no folder": ({"dataset_name": "/nowhere/data"}, ["/nowhere/data", "no such folder"]),
    "no model": ({"model_name_or_path": "org/nothing"}, ["org/nothing", "--model_name_or_path"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_does_not_give_is_refused_in_one_line(start, hub, tmp_path, case):
    given, parts = REFUSED[case]
    hub.breaks = {".parquet"} if case == "broken transfer" else set()
    ended = start("glue_trans.py", *flags(tmp_path / "out", **given), cwd=tmp_path)
    hub.breaks = set()
    assert_refused(ended, "glue_trans.py", *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "remedy"),
    [("dataset_name", "local dataset folder"), ("model_name_or_path", "local folder")],
)
def test_no_connection_is_reported_after_one_request(start, down, tmp_path, flag, remedy):
    words = flags(tmp_path / "out", **{flag: "org/other"})
    ended = start("glue_trans.py", *words, cwd=tmp_path)
    assert_refused(ended, "glue_trans.py", "org/other", down.url, "cannot be reached", remedy)
    assert len(down.requests) == 1


def test_a_broken_transfer_resumes(start, hub, tmp_path):
    hub.breaks = {"train-00000-of-00001.parquet"}
    words = flags(tmp_path / "out", cache_dir=tmp_path / "cache", dataset_name="org/broken")
    assert start("glue_trans.py", *words, cwd=tmp_path).code == 2
    hub.breaks = set()
    ended = start("glue_trans.py", *words, cwd=tmp_path)
    assert ended.code == 0, ended.err


def test_scripts_import_the_library_datasets_only_for_datasets():
    """It takes a second."""
    code = "import sys, LT_glue, squad_trans, LT_pretrain; print('datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


# ---- tickets


@pytest.fixture(scope="module")
def ticket(start, hub, cache, repositories, tmp_path_factory):
    """Folder of a ticket that is on the hub as org/ticket too, and its mask file."""
    folder = tmp_path_factory.mktemp("ticket")
    words = ["--weight", "pre", "--model", "glue", "--rate", 0.5, "--output_dir", "mask"]
    words += ["--model_name_or_path", repositories / "bert"]
    assert start("oneshot.py", *words, cwd=folder).code == 0
    words = ["mask/mask.pt", "out", "--model", "org/bert", "--push_to_hub", "org/ticket"]
    environment = hub.environment(cache, HF_TOKEN="hf_test")
    ended = fresh("experiments/export_ticket.py", *words, cwd=folder, environment=environment)
    assert ended.code == 0 and ended.errors() == [], ended.err
    assert f"{hub.url}/org/ticket" in ended.out
    return folder / "out", folder / "mask" / "mask.pt"


def test_the_hub_has_the_exported_folder(hub, ticket):
    folder, _ = ticket
    local = {path.name: path.read_bytes() for path in folder.iterdir()}
    remote = dict(hub.repositories["org/ticket"])
    remote.pop(".gitattributes", None)
    assert remote == local
    card = local["README.md"].decode()
    assert "base_model: org/bert\n" in card and "license: " in card


def test_a_mask_from_the_hub_trains_as_its_file(start, ticket, tmp_path):
    for name, mask in (("hub", "org/ticket"), ("file", ticket[1])):
        ended = start("glue_trans.py", *flags(tmp_path / name, mask_dir=mask), cwd=tmp_path)
        assert ended.code == 0 and ended.errors() == [], ended.err
    one, two = (launch.results(tmp_path / name)[-1] for name in ("hub", "file"))
    assert (one["mask"], one["sparsity"]) == ("org/ticket", two["sparsity"])
    for key in ("metrics", "mask_sha256", "mask_info"):
        assert one[key] == two[key]


@pytest.mark.parametrize("mask", ["org/nothing", "org/bert", "masks/gone.pt"])
def test_a_missing_mask_is_refused_in_one_line(start, tmp_path, mask):
    ended = start("glue_trans.py", *flags(tmp_path / "out", mask_dir=mask), cwd=tmp_path)
    assert_refused(ended, "glue_trans.py", mask)


def test_a_failed_upload_keeps_the_folder(cache, ticket, down, repositories, tmp_path):
    words = [ticket[1], "out", "--model", repositories / "bert", "--push_to_hub", "org/other"]
    environment = down.environment(cache)
    ended = fresh("experiments/export_ticket.py", *words, cwd=tmp_path, environment=environment)
    assert_refused(ended, "export_ticket.py", "org/other", "cannot be reached", "hf upload")
    assert (tmp_path / "out" / "mask.safetensors").exists()
