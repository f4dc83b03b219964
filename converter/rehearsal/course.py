"""The steps of a rehearsal. Each runs in a process of its own, which knows nothing of the others."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from converter.checkpoint.files import read_json
from converter.checkpoint.source import PIPELINE_INDEX
from converter.console import Reporter, readable_size
from converter.errors import DependencyError, HubError, InputError, LensconvError, ReleaseError, ResourceError
from converter.models.lens.layout import PIPELINE_CLASS_NAME
from converter.models.pipelines import describe_pipeline
from converter.publication.options import PublishOptions
from converter.rehearsal.process import RunningHub

#: The image shows that the download works, not how well: it has few steps, so that it takes seconds on a GPU.
_STEPS = ("--steps", "4")
#: Lens can draw small images. Other pipelines may be unable to, and draw images of their own size.
_SIZE = ("--height", "256", "--width", "256")
_PROMPT = "A cat holding a sign that says hello world"
#: Seconds that the Hub may take to answer a request for its page.
_PAGE_SECONDS = 60.0
#: Characters shown of the last line of a process that failed.
_REASON_LENGTH = 500
_DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], revision=sys.argv[2]))
"""


@dataclass(frozen=True)
class Step:
    """A step of a rehearsal."""

    name: str
    """``publish``, ``page``, ``audit``, ``download``, and ``generate``, or ``load`` if no image can be generated."""
    elapsed_s: float
    detail: str
    """What was found, or what went wrong."""
    exit_code: int = 0
    """The exit code of the error; 0 without one."""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` shows."""
        return {
            "name": self.name,
            "ok": self.exit_code == 0,
            "elapsed_s": round(self.elapsed_s, 3),
            "detail": self.detail,
        }


@dataclass
class Course:
    """What is rehearsed, and the steps.

    Args:
        hub: the Hub.
        root: the release folder.
        repository: ``OWNER/NAME``.
        options: how to publish.
        work: folder for the caches.
        image: file for the image.
        reporter: shows notes.
        quiet: whether the processes write nothing to stderr.
    """

    hub: RunningHub
    root: Path
    repository: str
    options: PublishOptions
    work: Path
    image: Path
    reporter: Reporter
    quiet: bool
    receipt: dict[str, Any] = field(default_factory=dict, init=False)
    """What the publication printed, once it is done."""
    downloaded: Path = field(default=Path(), init=False)
    """The folder of the download, once it is done."""

    def run(self) -> Iterator[Step]:
        """Run the steps, up to the first that fails.

        Raises:
            LensconvError: what publishing raises.
        """
        parts: dict[str, Callable[[], str]] = {
            "publish": self.publish,
            "page": self.open_page,
            "audit": self.audit,
            "download": self.download,
            **({"generate": self.generate} if self.can_generate() else {"load": self.load}),
        }
        for name, part in parts.items():
            self.reporter.note(f"rehearsing: {name}")
            started = time.monotonic()
            try:
                detail, exit_code = part(), 0
            except LensconvError as error:
                if name == "publish":
                    raise
                detail, exit_code = error.with_hint.rstrip("."), error.exit_code
            yield Step(name, time.monotonic() - started, detail, exit_code)
            if exit_code:
                return

    def can_generate(self) -> bool:
        """Whether the release is a pipeline that `generate` supports, with the libraries of this machine."""
        return self._image_options() is not None

    def _image_options(self) -> tuple[str, ...] | None:
        """The options of a quick image; None if the release does not make an image of a prompt."""
        try:
            if read_json(self.root / PIPELINE_INDEX).get("_class_name") == PIPELINE_CLASS_NAME:
                return (*_STEPS, *_SIZE)
            pipeline = describe_pipeline(self.root)
        except (InputError, DependencyError):
            return None
        if not pipeline.makes_images_of_prompts:
            return None
        return _STEPS if pipeline.call.takes("num_inference_steps") else ()

    def publish(self) -> str:
        """Publish with the command itself."""
        options = self.options
        arguments = [f"--message={options.message}", f"--revision={options.revision}", f"--receipt={options.receipt}"]
        arguments += [f"--patience={options.patience}", *([f"--tag={options.tag}"] if options.tag is not None else [])]
        flags = {"--private": options.private, "--create-pr": options.create_pr, "--read-back": options.read_back}
        flags["--prune"] = options.prune
        arguments += [name for name, is_set in flags.items() if is_set]
        self.receipt = self._lensconv("publish", str(self.root), self.repository, *arguments)
        files = f"{len(self.receipt['files'])} files, {readable_size(self.receipt['total_bytes'])}"
        how = "in one commit" if self.receipt["changed"] else "already there"
        return f"{files}, {how}, {self.receipt['commit'][:12]}"

    def open_page(self) -> str:
        """Open the repo's page as a browser would, and the images of the card."""
        address = f"{self.hub.endpoint}/{quote(self.repository)}"
        shown = f"{address}/tree/{self.receipt['commit']}"
        text = self._get(shown).decode()
        if self.repository not in text:
            raise HubError("the repo's page does not show its name")
        page = _Images()
        page.feed(text)
        own = [image for image in (urljoin(shown, found) for found in page.found) if image.startswith(address)]
        size = sum(len(self._get(image)) for image in own)
        images = "one image" if len(own) == 1 else f"{len(own)} images"
        return f"{address} shows the card" + (f", with {images}, {readable_size(size)}" if own else "")

    def audit(self) -> str:
        """Compare the repo with the release, over the network."""
        address = f"hf://{self.repository}@{self.receipt['commit']}"
        report = self._verify(address, "--against", str(self.root))
        return f"{len(report['checks'])} checks passed, {readable_size(report['hub']['received_bytes'])} read"

    def download(self) -> str:
        """Download the release into an empty cache, and compare every file with the manifest."""
        command = [sys.executable, "-P", "-c", _DOWNLOAD, self.repository, self.receipt["commit"]]
        done = self._run(command, self._environment("download"), subprocess.PIPE)
        if done.returncode:
            reason = f"exit code {done.returncode}\n{done.stderr}".rstrip().split("\n")[-1]
            raise HubError(f"snapshot_download: {reason[:_REASON_LENGTH]}")
        self.downloaded = Path(done.stdout.strip())
        self._verify(str(self.downloaded), "--checksums", offline=True)
        return f"{len(self.receipt['files'])} files, all with the manifest's sha256"

    def generate(self) -> str:
        """Generate an image with the download, without the Hub."""
        arguments = ["--prompt", _PROMPT, "--out", str(self.image), "--overwrite", *(self._image_options() or ())]
        made = self._lensconv("generate", str(self.downloaded), *arguments, offline=True)
        settings = made["settings"]
        return f"{settings['width']}x{settings['height']}, {settings['steps']} steps, on {settings['device']}"

    def load(self) -> str:
        """Load the download with its library, because `generate` does not support it."""
        report = self._verify(str(self.downloaded), "--load", offline=True)
        return f"{report['parameters']:,} parameters"

    def _verify(self, *arguments: str, offline: bool = False) -> dict[str, Any]:
        report = self._lensconv("verify", *arguments, offline=offline)
        checks = [check for check in report["checks"] if not check["ok"]]
        failed = [": ".join(filter(None, (check["component"], check["name"], check["detail"]))) for check in checks]
        if failed:
            raise ReleaseError("; ".join(failed))
        return report

    def _lensconv(self, *arguments: str, offline: bool = False) -> dict[str, Any]:
        """Run a command, and return the object that it prints.

        Raises:
            LensconvError: the command's own error.
        """
        output = ("--json", "--quiet") if self.quiet else ("--json",)
        environment = self._environment("download" if offline else "home") | (
            {"HF_HUB_OFFLINE": "1", "HF_TOKEN": ""} if offline else {}
        )
        done = self._run([sys.executable, "-P", "-m", "converter", *arguments, *output], environment, None)
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise ResourceError(f"lensconv {arguments[0]} printed nothing: exit code {done.returncode}") from None
        if "error" in answer:
            raise LensconvError.from_dict(answer["error"])
        return answer

    def _run(
        self, command: list[str], environment: dict[str, str], stderr: int | None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
        )

    def _environment(self, home: str) -> dict[str, str]:
        from huggingface_hub import constants

        return self.hub.environment(os.environ, self.work / home, xet=not constants.HF_HUB_DISABLE_XET)

    def _get(self, address: str) -> bytes:
        """Return what a browser gets."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.addheaders.append(("Authorization", f"Bearer {self.hub.account.token}"))
        try:
            with opener.open(address, timeout=_PAGE_SECONDS) as response:
                content: bytes = response.read()
                return content
        except (OSError, http.client.HTTPException) as error:
            raise HubError(f"{address}: {error}") from error


class _Images(HTMLParser):
    """Collects the addresses of the images of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an image."""
        for name, value in attrs:
            if value and (tag, name) in (("img", "src"), ("source", "srcset")):
                self.found.append(value)
