"""A whole configuration file, and the settings that it stands for."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fabric.config.groups import GroupSection, HostedSection
from fabric.config.sections import HomePath, ModelSection, Name, RaySection, RouterSection, Section
from fabric.core.plan import ParallelConfig, PlacementPlan
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.models.sources import default_cache_dir
from fabric.router.settings import RouterSettings


class FabricConfig(Section):
    """Everything that `fabric serve` reads."""

    name: Name = "fabric"
    models: Annotated[list[ModelSection], Field(min_length=1)]
    groups: Annotated[list[GroupSection], Field(min_length=1)]
    router: RouterSection = RouterSection()
    ray: RaySection = RaySection()
    link_host: str | None = None
    cache_dir: HomePath = Field(default_factory=default_cache_dir)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        ids = [model.id for model in self.models]
        names = [group.name for group in self.groups]
        for kind, values in (("models", ids), ("groups", names)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{kind}: {twice[0]!r} is named twice")
        hosted = {model: group.name for group in self.groups for model in group.model_ids}
        for model, group_name in hosted.items():
            if model not in ids:
                raise ValueError(f"groups: {group_name!r} hosts {model!r}, not one of {ids}")
        for model in ids:
            if model not in hosted:
                raise ValueError(f"models: no group hosts {model!r}")
        return self

    def plan(self) -> PlacementPlan:
        """Which device groups there are, and what they host."""
        groups = tuple(group.plan(self.models) for group in self.groups)
        return PlacementPlan(groups, tuple((model.id, model.source) for model in self.models))

    def only(self, group: str) -> Self:
        """The same with one device group, and the models that it hosts."""
        section = next(section for section in self.groups if section.name == group)
        models = [model for model in self.models if model.id in section.model_ids]
        return self.model_copy(update={"models": models, "groups": [section]})

    def engine_settings(self, group: GroupSection) -> EngineSettings:
        """What a group's engine is built from."""
        return EngineSettings(
            worker=self._worker_settings(group),
            scheduler=group.scheduler_config(),
            prefix_cache=group.prefix_cache,
            parallel=ParallelConfig(group.parallel.pipeline, group.parallel.tensor),
            layer_split=tuple(group.parallel.layer_split) if group.parallel.layer_split else None,
        )

    def router_settings(self, link_secret: str) -> RouterSettings:
        """What a router is built from."""
        return RouterSettings(
            host=self.router.host,
            port=self.router.port,
            model_ids=tuple(model.id for model in self.models),
            link_secret=link_secret,
            max_message_bytes=int(self.router.max_message),
            max_inflight=self.router.max_inflight,
            stall_after_s=self.router.stall_after_s,
            reflection=self.router.reflection,
            metrics_host=self.router.metrics_host,
            metrics_port=self.router.metrics_port,
            routing=self.router.routing,
            objectives={model.id: model.objectives.objectives() for model in self.models},
            tenants={name: tenant.limits() for name, tenant in self.router.tenants.items()},
            default_tenant=self.router.default_tenant.limits(),
            tls=None if self.router.tls is None else self.router.tls.settings(),
        )

    def _worker_settings(self, group: GroupSection) -> WorkerSettings:
        return WorkerSettings(
            models=tuple(self._model_settings(group, hosted) for hosted in group.models),
            cache_dir=self.cache_dir,
            device=group.device,
            kv_cache_bytes=int(group.kv_cache),
            memory_bytes=None if group.memory is None else int(group.memory),
            slab_bytes=None if group.slab is None else int(group.slab),
            host_weight_bytes=group.host_weight_bytes,
            host_weight_dir=group.weights.dir,
            block_size=group.block_size,
            num_threads=group.num_threads,
            cuda_graphs=group.cuda_graphs,
            parking=group.swap.parking_settings(),
        )

    def _model_settings(self, group: GroupSection, hosted: HostedSection) -> ModelSettings:
        model = next(model for model in self.models if model.id == hosted.id)
        return ModelSettings(
            model=model.id,
            source=model.source,
            dtype=model.dtype,
            quantization=model.quantization,
            max_model_len=model.max_model_len,
            min_share=hosted.min_share,
            max_share=hosted.max_share,
            pinned=hosted.pinned,
            starts=hosted.starts,
            profile=hosted.profile or group.profile,
        )
