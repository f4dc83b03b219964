"""Every call of huggingface_hub's client: what the local Hub is for has the answer of the real one, the rest none."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.faulty_hub import FaultyHub
from tests.hubs import run_client

#: Programs that make calls by their names.
_CALL = """
import inspect, struct
from huggingface_hub import CommitOperationCopy, HfFileSystem, ModelCard, hf_hub_url
header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
weights = struct.pack("<Q", len(header)) + header + bytes(8)
def call(name, *arguments, view=lambda answer: answer, **options):
    answer = getattr(api, name)(*arguments, **options)
    answer = list(answer) if inspect.isgenerator(answer) else answer
    found[name] = view(answer)
    return answer
"""
#: Each served method is called once.
SERVED = """
repo, other, folder = "alice/client", "lab/other", Path(sys.argv[1])
(folder / "d").mkdir()
(folder / "README.md").write_text("---\\nlicense: mit\\nlibrary_name: diffusers\\n---\\n# A")
for name in ("d/x.bin", "d/y.txt", "a.log", "b.log", "c.txt"):
    (folder / name).write_text(name)
def files(_, at=repo, **options):
    return " ".join(path for path in api.list_repo_files(at, **options) if path != ".gitattributes")
call("whoami", view=lambda me: [me["name"], *[org["name"] for org in me["orgs"]]])
call("get_full_repo_name", "client")
call("create_repo", repo, view=lambda url: [url.repo_id, url.repo_type, api.create_repo(other).repo_id])
call("update_repo_settings", repo, gated="auto", view=lambda _: api.model_info(repo).gated)
call("auth_check", repo, write=True)
call("repo_exists", "gpt2")
call("upload_folder", repo_id=repo, folder_path=folder, view=files)
first = call("upload_file", path_or_fileobj=weights, path_in_repo="model.safetensors", repo_id=repo, view=files)
def is_first(answer):
    return api.model_info(repo, revision="v1").sha == first.oid
call("create_tag", repo, tag="v1", revision=first.oid[:7], view=is_first)
call("delete_file", "c.txt", repo, view=files)
call("delete_files", repo, ["*.log"], view=files)
added = CommitOperationAdd("e.bin", b"e")
call("preupload_lfs_files", repo, [added], view=lambda _: added._is_uploaded)
copied = [added, CommitOperationCopy("model.safetensors", "d/model.safetensors")]
copied.append(CommitOperationCopy("c.txt", "c.txt", src_revision="v1"))
head = api.model_info(repo).sha
call("create_commit", repo, copied, commit_message="<Copy>", parent_commit=head[:8], view=files)
call("copy_files", f"hf://{repo}/d", f"hf://{other}/", view=lambda answer: files(answer, other))
call("delete_folder", "d", repo, view=files)
call("create_branch", repo, branch="next", revision=first.oid, view=lambda answer: files(answer, revision="next"))
offer = call("create_pull_request", repo, title="Offer", view=lambda pull: [pull.num, pull.status, pull.git_reference])
api.upload_file(path_or_fileobj=b"f", path_in_repo="f.txt", repo_id=repo, revision=offer.git_reference)
def all_refs(refs):
    return [ref.ref for ref in (*refs.branches, *refs.tags, *refs.pull_requests)]
call("list_repo_refs", repo, include_pull_requests=True, view=all_refs)
call("get_repo_discussions", repo, discussion_status="open", view=lambda pulls: [pull.title for pull in pulls])
call("get_discussion_details", repo, 1, view=lambda pull: [event.type for event in pull.events])
call("change_discussion_status", repo, 1, "open", view=lambda event: event.new_status)
call("merge_pull_request", repo, 1, view=files)
def some_commits(commits):
    return [commits[1].title, commits[2].formatted_title, commits[2].authors]
commits = call("list_repo_commits", repo, formatted=True, view=some_commits)
def chosen(info):
    return [info.sha == first.oid, info.author, info.used_storage]
call("repo_info", repo, revision="v1", expand=["sha", "usedStorage"], view=chosen)
def tags_and_sizes(info):
    return [info.tags, {file.rfilename: file.size for file in info.siblings if file.lfs}]
call("model_info", repo, files_metadata=True, view=tags_and_sizes)
call("revision_exists", repo, "nothing")
call("resolve_revision", repo, revision="v1", view=lambda revision: revision.resolved == first.oid)
filters = {"author": "alice", "filter": "license:mit", "sort": "last_modified", "limit": 3}
def listed(repos):
    others = api.list_models(sort="created_at", limit=2), api.list_models(**filters, gated=False)
    return [[one.id, one.card_data.license] for one in repos] + [[one.id for one in found] for found in others]
call("list_models", **filters, cardData=True, view=listed)
def last_commits(items):
    return [[item.path, item.last_commit.title] for item in items]
call("get_paths_info", repo, ["e.bin", "nothing"], expand=True, view=last_commits)
call("list_repo_tree", repo, recursive=True, revision="v1", expand=True, view=lambda items: last_commits(items)[-3:])
call("list_repo_files", repo, revision="v1")
call("file_exists", repo, "nothing")
address = hf_hub_url(repo, "e.bin", endpoint=api.endpoint)
call("get_hf_file_metadata", url=address, view=lambda file: [file.size, file.commit_hash == commits[0].commit_id])
call("hf_hub_download", repo, "e.bin", view=lambda path: Path(path).read_text())
copy = call("snapshot_download", repo, revision="v1", view=lambda path: (Path(path) / "d" / "x.bin").read_text())
def checked(check):
    return [check.checked_count, len(check.mismatches)]
call("verify_repo_checksums", repo, local_dir=copy, revision="v1", view=checked)
call("get_safetensors_metadata", repo, view=lambda info: info.weight_map)
call("parse_safetensors_file_metadata", repo, "model.safetensors", view=lambda info: info.parameter_count)
call("list_repo_likers", repo)
call("unlike", repo)
large = call("list_lfs_files", repo, view=lambda items: [[item.filename, item.ref, item.size] for item in items])
unwanted = [item for item in large if item.filename != "model.safetensors"]
call("permanently_delete_lfs_files", repo, unwanted, view=lambda answer: [files(answer), files(answer, revision="v1")])
call("super_squash_history", repo, view=lambda _: [commit.title for commit in api.list_repo_commits(repo)])
call("delete_tag", repo, tag="v1", view=lambda _: api.list_repo_refs(repo).tags)
call("delete_branch", repo, branch="next", view=lambda _: [branch.name for branch in api.list_repo_refs(repo).branches])
call("move_repo", repo, "lab/moved")
call("run_as_future", api.model_info, repo, view=lambda future: future.result().id)
call("delete_repo", "lab/moved", view=lambda _: api.repo_exists(repo))
"""
_LARGE = {"d/x.bin": 7, "model.safetensors": 77, "e.bin": 1}
ANSWERS: dict[str, object] = {
    "whoami": ["alice", "lab"],
    "get_full_repo_name": "alice/client",
    "create_repo": ["alice/client", "model", "lab/other"],
    "update_repo_settings": "auto",
    "auth_check": None,
    "repo_exists": False,
    "upload_folder": "README.md a.log b.log c.txt d/x.bin d/y.txt",
    "upload_file": "README.md a.log b.log c.txt d/x.bin d/y.txt model.safetensors",
    "create_tag": True,
    "delete_file": "README.md a.log b.log d/x.bin d/y.txt model.safetensors",
    "delete_files": "README.md d/x.bin d/y.txt model.safetensors",
    "preupload_lfs_files": True,
    "create_commit": "README.md c.txt d/model.safetensors d/x.bin d/y.txt e.bin model.safetensors",
    "copy_files": "d/model.safetensors d/x.bin d/y.txt",
    "delete_folder": "README.md c.txt e.bin model.safetensors",
    "create_branch": "README.md a.log b.log c.txt d/x.bin d/y.txt model.safetensors",
    "create_pull_request": [1, "draft", "refs/pr/1"],
    "list_repo_refs": ["refs/heads/main", "refs/heads/next", "refs/tags/v1", "refs/pr/1"],
    "get_repo_discussions": ["Offer"],
    "get_discussion_details": ["comment", "commit"],
    "change_discussion_status": "open",
    "merge_pull_request": "README.md c.txt e.bin f.txt model.safetensors",
    "list_repo_commits": ["Delete folder d with huggingface_hub", "&lt;Copy&gt;", ["alice"]],
    "repo_info": [True, None, 85],
    "model_info": [["diffusers", "safetensors", "license:mit", "region:us"], {"e.bin": 1, "model.safetensors": 77}],
    "revision_exists": False,
    "resolve_revision": True,
    "list_models": [["alice/client", "mit"], ["lab/other", "alice/client"], []],
    "get_paths_info": [["e.bin", "<Copy>"]],
    "list_repo_tree": [
        ["d/x.bin", "Upload folder using huggingface_hub"],
        ["d/y.txt", "Upload folder using huggingface_hub"],
        ["model.safetensors", "Upload model.safetensors with huggingface_hub"],
    ],
    "list_repo_files": [
        *(".gitattributes", "README.md", "a.log", "b.log", "c.txt", "d/x.bin", "d/y.txt", "model.safetensors"),
    ],
    "file_exists": False,
    "get_hf_file_metadata": [1, True],
    "hf_hub_download": "e",
    "snapshot_download": "d/x.bin",
    "verify_repo_checksums": [8, 0],
    "get_safetensors_metadata": {"a": "model.safetensors"},
    "parse_safetensors_file_metadata": {"F32": 2},
    "list_repo_likers": [],
    "unlike": None,
    "list_lfs_files": [[name, "refs/heads/main", size] for name, size in _LARGE.items()],
    "permanently_delete_lfs_files": [
        "README.md c.txt f.txt model.safetensors",
        "README.md a.log b.log c.txt d/y.txt model.safetensors",
    ],
    "super_squash_history": ["Super-squash branch 'main' using huggingface_hub"],
    "delete_tag": [],
    "delete_branch": ["main"],
    "move_repo": None,
    "run_as_future": "lab/moved",
    "delete_repo": False,
}

#: Repos of other kinds, comments, requests for access, and services beside repos: the local Hub says that it has none.
REFUSED = """
accept_access_request add_collection_item add_space_secret add_space_variable batch_bucket_files bucket_info
cancel_access_request cancel_job comment_discussion create_bucket create_collection create_discussion
create_scheduled_job create_scheduled_uv_job create_webhook dataset_info delete_bucket delete_collection
delete_collection_item delete_scheduled_job delete_space_secret delete_space_variable delete_space_volumes
delete_webhook disable_space_dev_mode disable_webhook download_bucket_files duplicate_repo edit_discussion_comment
enable_space_dev_mode enable_webhook fetch_job_logs fetch_job_metrics fetch_space_logs get_bucket_file_metadata
get_bucket_paths_info get_collection get_dataset_leaderboard get_dataset_tags get_model_tags
get_organization_overview get_sharded_safetensors_metadata get_space_runtime get_space_secrets get_space_variables
get_user_overview get_webhook get_zero_gpu_quota grant_access hide_discussion_comment inspect_job
inspect_scheduled_job kernel_info list_accepted_access_requests list_bucket_tree list_buckets list_collections
list_daily_papers list_datasets list_jobs list_jobs_hardware list_liked_repos list_organization_followers
list_organization_members list_papers list_pending_access_requests list_rejected_access_requests
list_scheduled_jobs list_space_templates list_spaces list_spaces_hardware list_user_followers list_user_following
list_user_repos list_webhooks move_bucket paper_info pause_space read_paper reject_access_request rename_discussion
request_space_hardware rerun_job restart_space resume_scheduled_job run_job run_uv_job search_spaces
set_space_sleep_time set_space_volumes space_info suspend_scheduled_job sync_bucket sync_job_volume
trigger_scheduled_job update_bucket_settings update_collection_item update_collection_metadata
update_collection_resource_group update_job_expose update_job_labels update_scheduled_job_labels
update_scheduled_job_schedule update_webhook upload_attachment wait_for_job wait_for_space
"""
#: These ask other servers than the Hub, or refuse any Hub but huggingface.co themselves.
ELSEWHERE = """
create_inference_endpoint create_inference_endpoint_from_catalog delete_inference_endpoint get_inference_endpoint
list_dataset_parquet_files list_inference_catalog list_inference_endpoints list_inference_endpoints_hardware
pause_inference_endpoint resume_inference_endpoint scale_to_zero_inference_endpoint update_inference_endpoint
"""
_REFUSED_PROGRAM = """
api.create_repo("alice/r")
api.create_pull_request("alice/r", title="Offer")
Path("a.png").write_bytes(b"x")
samples = {"repo_id": "alice/r", "from_id": "alice/r", "to_id": "alice/s", "discussion_num": 1, "volumes": []}
samples |= {"collection_slug": "alice/x-0123456789abcdef01234567", "comment_id": "0" * 24, "mount_path": "/x"}
more = {name: {"user": "bob"} for name in ("accept_access_request", "cancel_access_request", "reject_access_request")}
more |= {"create_webhook": {"url": "x"}, "upload_attachment": {"path": "a.png"}, "sync_job_volume": {"source": "."}}
more |= {"download_bucket_files": {"files": [("x", "x")]}, "batch_bucket_files": {"delete": ["x"]}}
more |= {"sync_bucket": {"source": ".", "dest": "hf://buckets/alice/x"}}
for name in sys.argv[1:]:
    method = getattr(api, name)
    parts = inspect.signature(method).parameters.values()
    values = {part.name: samples.get(part.name, "x") for part in parts if part.default is part.empty}
    try:
        found[name] = str(call(name, **values | more.get(name, {})))
    except Exception as error:
        text = str(error)
        named = "this local Hub does not provide" in text
        found[name] = [type(error).__name__, error.response.status_code, named] if hasattr(error, "response") else text
"""

#: Calls of the package that are not methods of HfApi.
_HELPERS = """
from huggingface_hub import get_safetensors_metadata, metadata_update
from huggingface_hub.utils import get_session
repo, files = api.create_repo(f"alice/helpers-{sys.argv[1]}").repo_id, HfFileSystem()
first = api.model_info(repo).sha
card = ModelCard("---\\nlicense: mit\\n---\\n# A card\\n")
found["pushed"] = [card.push_to_hub(repo).pr_url, ModelCard.load(repo).data.license]
metadata_update(repo, {"tags": ["x"]})
found["tags"] = ModelCard.load(repo).data.tags
try:
    ModelCard("---\\nlicense: mit\\nlanguage: [3]\\n---\\n").validate()
except ValueError as error:
    found["refused"] = str(error)
with files.open(f"{repo}/d/a.bin", "wb") as stream:
    stream.write(b"0123456789" * 100)
files.cp_file(f"{repo}/d/a.bin", f"{repo}/d/b.bin")
found["listed"] = [*files.ls(f"{repo}/d", detail=False), *files.glob(f"{repo}@main/**/*.bin")]
with files.open(f"{repo}/d/b.bin", block_size=16) as stream:
    stream.seek(993)
    found["read"] = stream.read(4).decode()
found["known"] = [files.info(f"{repo}/d")["type"], files.exists("alice/nothing"), files.exists("alice/nothing/x")]
files.rm(f"{repo}/d", recursive=True)
found["left"] = [path.rpartition("/")[2] for path in files.find(repo)]
added = [CommitOperationAdd("x.txt", b"x")]
early = api.create_commit(repo, added, commit_message="Early", create_pr=True, parent_commit=first[:7])
found["early"] = [early.pr_revision, api.list_repo_files(repo, revision=early.pr_revision)]
moved = api.create_repo(repo + "-moved").repo_id
api.delete_repo(moved)
api.move_repo(repo, moved)
api.upload_file(path_or_fileobj=b"e" * 9, path_in_repo="e.bin", repo_id=repo)
files.invalidate_cache()
paths = api.hf_hub_download(repo, "e.bin"), f"{snapshot_download(repo)}/e.bin", files.cat_file(f"{repo}/e.bin")
found["moved"] = [*(Path(path).read_text() for path in paths[:2]), paths[2].decode(), api.model_info(repo).id == moved]
found["moved query"] = api.model_info(repo, expand=["sha"]).author
answer = get_session().get(f"{api.endpoint}/api/models", headers={"X-Request-Id": "abc"})
found["request"] = answer.headers["X-Request-Id"]
api.update_repo_settings(moved, private=True)
found["hidden"] = get_session().get(f"{api.endpoint}/api/models/{repo}", follow_redirects=False).status_code
"""


def test_every_method_of_the_client_is_in_one_table() -> None:
    methods = [name for name, _ in inspect.getmembers(HfApi, inspect.isfunction) if not name.startswith("_")]
    assert sorted([*ANSWERS, *REFUSED.split(), *ELSEWHERE.split()]) == methods


def test_what_the_local_hub_is_for_has_the_answers_of_the_real_one(hub: FaultyHub, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    found = run_client(hub, tmp_path / "home", f"{_CALL}{SERVED}", tmp_path / "folder", xet=True)
    assert found == ANSWERS


def test_what_it_is_not_for_is_named(hub: FaultyHub, tmp_path: Path) -> None:
    names = REFUSED.split()
    program = f"os.chdir({str(tmp_path)!r}){_CALL}{_REFUSED_PROGRAM}"
    found = run_client(hub, tmp_path, program, *names, HF_HUB_DISABLE_EXPERIMENTAL_WARNING="1")
    # The client takes a 404 for the answer of a service that has no such thing, or has it no more.
    services = [name for name in names if any(kind in name for kind in ("job", "collection", "bucket"))]
    statuses = dict.fromkeys(names, 404) | dict.fromkeys(services, 501)
    statuses |= {"get_bucket_file_metadata": 404, "move_bucket": 404}
    assert found == {name: ["HfHubHTTPError", status, True] for name, status in statuses.items()}


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_helpers_around_the_client(hub: FaultyHub, tmp_path: Path, xet: bool) -> None:
    repo = f"alice/helpers-{xet}"
    assert run_client(hub, tmp_path, f"{_CALL}{_HELPERS}", xet, xet=xet) == {
        "pushed": [None, "mit"],
        "tags": ["x"],
        "refused": "- Error: language 3 is not text; put it in quotes",
        "listed": [f"{repo}/d/{name}.bin" for name in "ab"] + [f"{repo}@main/d/{name}.bin" for name in "ab"],
        "read": "3456",
        "known": ["directory", False, False],
        "left": [".gitattributes", "README.md"],
        "early": ["refs/pr/1", [".gitattributes", "x.txt"]],
        "moved": ["eeeeeeeee"] * 3 + [True],
        "moved query": None,
        "request": "abc",
        "hidden": 401,
    }
