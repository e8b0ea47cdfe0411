"""Everything Dagster sees, derived from the dbt project that `SCOREHOUSE_PROJECT` names."""

import dagster as dg

from ml.sources import REDELIVERED
from orchestration.automation import daily, retraining_sensor, stream_sensor, weekly
from orchestration.drifting import drift_asset
from orchestration.events import publish_contracts
from orchestration.instance import in_process_executor
from orchestration.jobs import jobs_sensor, scoring_jobs
from orchestration.leaks import right_in_time
from orchestration.loading import check_sources, raw_asset
from orchestration.overviews import overview_asset
from orchestration.performance import performance_asset
from orchestration.project import Paths, load_manifest, load_project, paths
from orchestration.publishing import generation_asset
from orchestration.scoring import predictions_asset
from orchestration.telling import figures_asset
from orchestration.training import training_assets
from orchestration.transforming import asset_keys, dbt_resource, transformed_assets


def define(where: Paths) -> dg.Definitions:
    """What a dbt project declares, as Dagster sees it: raw tables, models, and each score's way to its generation."""
    project = load_project(where)
    check_sources(project)
    publish_contracts(project, where)
    manifest = load_manifest(where)
    keys = asset_keys(manifest)
    figures = [
        keys[source["unique_id"]]
        for source in manifest["sources"].values()
        if (source["schema"], source["identifier"]) == ("quality", "source_metrics")
    ]
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [
        *(raw_asset(source, keys[source.id], figures, project, where) for source in project.sources),
        *(figures_asset(key, [keys[source.id] for source in project.sources]) for key in figures),
    ]
    assets.append(transformed_assets(manifest, project, where))
    for score in project.scores:
        features, label = keys[score.features_id], keys[score.label_id]
        assets += training_assets(score, features, label, project, where)
        assets += [
            predictions_asset(score, features, where),
            generation_asset(score, project, where),
            drift_asset(score, project, where),
            performance_asset(score, label, project, where),
            overview_asset(score, project, where),
        ]
    # Several scores may have one feature model: any of them stands for it.
    featured = {score.features_id: score for score in project.scores}
    guards = [right_in_time(score, keys[model], project, manifest, where) for model, score in featured.items()]
    scoring = scoring_jobs(project, where)
    schedules = [daily(guards), *([weekly(guards, where)] if guards else [])]
    return dg.Definitions(
        assets=assets,
        asset_checks=guards,
        jobs=[*(schedule.job for schedule in schedules), scoring],
        schedules=schedules,
        sensors=[
            stream_sensor(source, keys[source.id], guards, where)
            for source in project.sources
            if source.scheme in REDELIVERED
        ]
        + [
            retraining_sensor(score, guards, project, where)
            for score in project.scores
            if score.retrain and (score.retrain.drift or score.retrain.performance)
        ]
        + [jobs_sensor(scoring, where)],
        resources={"dbt": dbt_resource(where)},
        executor=in_process_executor(where),
    )


@dg.definitions
def definitions() -> dg.Definitions:
    return define(paths())
