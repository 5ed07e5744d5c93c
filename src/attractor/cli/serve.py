"""``attractor serve``: a server for a language model with OpenAI's API."""

from attractor.cli.output import say


def serve(
    checkpoint: str,
    /,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    max_batch: int = 8,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
) -> None:
    """Serve a language model with OpenAI's API: completions and chat, with streaming and batches.

    Args:
        checkpoint: The folder of a checkpoint, or of a run, whose newest checkpoint is taken; or a name on the hub.
        host: The address to listen on; 0.0.0.0 for all addresses of this machine.
        port: The port to listen on; 0 for any free one.
        name: The model's name in requests; by default the last part of CHECKPOINT.
        max_batch: The largest number of waiting requests that are answered together.
        depth: Evaluations per token, instead of a tolerance, for requests that give no budget.
        tolerance: The relative residual at which a token has converged, instead of the model's.
        max_evaluations: The largest number of evaluations, instead of the model's.
    """
    import contextlib
    import socket
    from pathlib import Path

    from attractor.errors import ConfigError
    from attractor.experiment.loading import load_language_model, local_folder
    from attractor.experiment.serving import make_app

    def listen() -> socket.socket:
        try:
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--host {host} --port {port}: cannot be listened on ({error}); give another one."
            ) from error

    listen().close()  # errors come before the model is loaded; clients are refused until it is, and do not wait
    loaded = load_language_model(local_folder(checkpoint))
    name = name or Path(checkpoint).resolve().name
    budget = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations}
    app = make_app(loaded, name, max_batch=max_batch, **budget)
    import uvicorn

    with listen() as listening:
        shown = f"[{host}]" if ":" in host else host
        say(f"{name}: base_url http://{shown}:{listening.getsockname()[1]}/v1")
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to end a server
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
