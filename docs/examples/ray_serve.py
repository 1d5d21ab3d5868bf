"""A fleet of servers: the OpenAI API as a Ray Serve deployment, whose replicas come and go with the requests.

On every machine `pip install 'ray[serve]'`, and slipstream with its extra `server`. Then, in this folder,

    serve run ray_serve:app model=Qwen/Qwen3-8B method=eagle2 draft=/models/eagle-qwen3 most=8

serves http://127.0.0.1:8000/v1 as `slipstream serve` does. `gpus=0` is for machines without a GPU.
"""

from fastapi import FastAPI
from ray import serve


def app(words: dict[str, str]) -> serve.Application:
    """words: model, method, draft, dtype, fewest and most replicas, gpus of each."""
    model, method = words["model"], words.get("method", "auto")
    others = {name: words[name] for name in ("draft", "dtype") if name in words}

    def server() -> FastAPI:  # called by each replica
        import slipstream
        from slipstream.server.app import make_app
        from slipstream.server.settings import ServerSettings

        settings = ServerSettings()
        return make_app(slipstream.load(model, method, keep=settings.keep, **others), model, settings)

    replicas = serve.deployment(
        serve.ingress(server)(),
        name="slipstream",
        ray_actor_options={"num_gpus": float(words.get("gpus", 1))},
        max_ongoing_requests=8,  # of a replica; others wait, and make more replicas start
        autoscaling_config={
            "min_replicas": int(words.get("fewest", 1)),
            "max_replicas": int(words.get("most", 4)),
            "target_ongoing_requests": 2,
        },
    )
    return replicas.bind()
