"""`mmft demo RUN`: a local page where a run's policy answers pictures beside the model it started from.

The page is `cli.demo_page`, what happens behind it `cli.demo_work`. Nothing leaves the machine: no share
link, no usage statistics, no fonts from elsewhere; pictures that are uploaded are gone when the server ends.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmft.cli.console import say
from mmft.cli.run_arguments import TRUST, RunParser
from mmft.errors import ConfigError

DESCRIPTION = """\
Opens a local page in the browser: upload a picture and see what the run's policy says about it, what the
model said that it was trained from, what that earns, and what it depends on. Ctrl-C ends it.
"""
PORT = 7860


def parser() -> RunParser:
    """The words of the command."""
    words = RunParser(prog="mmft demo", description=DESCRIPTION)
    words.add_argument("run", metavar="RUN", help="a run's folder or hub id, or a model")
    words.add_argument("--port", type=int, default=PORT, help=f"{PORT} if unset; 0 takes any that is free")
    words.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; 127.0.0.1 if unset"
    )
    words.add_argument("--no-browser", action="store_true", help="do not open a browser")
    words.add_argument("--revision", help="of the hub's repository")
    words.add_argument("--base-model", metavar="NAME", help="where the pretrained model is, if it moved")
    words.add_argument("--trust-code", action="store_true", help=TRUST)
    return words


def main(argv: Sequence[str]) -> int:
    """Serves the page until ctrl-C."""
    told = parser().parse_args(argv)
    if not 0 <= told.port < 2**16:
        raise ConfigError(f"`--port` must be between 0 and 65535; got {told.port}.")
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("`mmft demo` needs the package gradio: pip install 'mmft[demo]'.")
    with tempfile.TemporaryDirectory(prefix="mmft-demo-") as folder:
        # Read by gradio when it is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = folder
        return serve(told, Path(folder))


def serve(told: Any, folder: Path) -> int:
    """Loads the models, opens the page, and waits."""
    from mmft.cli.demo_page import LOOK, build_page
    from mmft.cli.demo_work import Workshop
    from mmft.cli.lone_pictures import open_run

    port = usable_port(told.host, told.port)
    run = open_run(told.run, revision=told.revision, base=told.base_model, trust_code=told.trust_code)
    say(f"loading {told.run} ...")
    workshop = Workshop(run, folder)
    page = build_page(workshop)
    _, address, _ = page.launch(
        server_name=told.host,
        server_port=port,
        inbrowser=not told.no_browser,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        **LOOK,
    )
    try:
        say(f"{address} shows {run.name}; ctrl-C ends it")
        threading.Event().wait()
    except KeyboardInterrupt:
        say("\nended")
    finally:
        page.close(verbose=False)
        workshop.wait()
    return 0


def usable_port(host: str, port: int) -> int:
    """The port, or any that is free where it is 0; found out before a model is loaded.

    Raises:
        ConfigError: something else listens there, or there is no such host.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"`--port` {port} of `--host` {host} cannot be used ({error}). Give another, or port 0."
        ) from error
