"""OpenLineage run events (https://openlineage.io/spec/2-0-2/OpenLineage.json), one per line.

Each line is one event, START or COMPLETE, as the collector of Marquez or DataHub takes it:
`while read -r event; do curl --json "$event" http://localhost:5000/api/v1/lineage; done < FILE`.
"""

import uuid
from typing import TYPE_CHECKING, Any

import mlflow_breadcrumbs
from mlflow_breadcrumbs.audit.export import subjects
from mlflow_breadcrumbs.support import extras

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent

NAMESPACE = "mlflow"
PRODUCER = f"urn:mlflow-breadcrumbs:{mlflow_breadcrumbs.__version__}"


def write(known: subjects.Subject) -> str:
    """The events as JSON Lines.

    Raises:
        ExtraError: the extra `audit` is not installed.
    """
    with extras.needed("audit", "the format openlineage"):
        from openlineage.client.event_v2 import RunState
        from openlineage.client.serde import Serde

    events = (
        _event(known, RunState.START, known.stated.started),
        _event(known, RunState.COMPLETE, known.stated.finished),
    )
    return "".join(f"{Serde.to_json(event)}\n" for event in events)


def _event(known: subjects.Subject, state: Any, time: str) -> "RunEvent":
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import (
        execution_parameters_run,
        job_type_job,
        processing_engine_run,
    )

    parameter = execution_parameters_run.ExecutionParameter
    stated = known.stated
    return RunEvent(
        eventType=state,
        eventTime=time,
        producer=PRODUCER,
        run=Run(
            # An MLflow run id is a UUID without its hyphens.
            runId=str(uuid.UUID(stated.run_id)),
            facets={
                "executionParameters": execution_parameters_run.ExecutionParametersRunFacet(
                    [
                        parameter(key=key, value=str(value))
                        for key, value in (
                            stated.settings.to_dict() | stated.tolerance_text("tolerance")
                        ).items()
                    ],
                    producer=PRODUCER,
                ),
                "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
                    version=stated.versions["mlflow_breadcrumbs"],
                    name="mlflow_breadcrumbs",
                    producer=PRODUCER,
                ),
            },
        ),
        job=Job(
            NAMESPACE,
            f"merge {known.title}",
            facets={
                "jobType": job_type_job.JobTypeJobFacet(
                    processingType="BATCH",
                    integration="MLFLOW",
                    jobType="MERGE",
                    producer=PRODUCER,
                )
            },
        ),
        inputs=_inputs(known),
        outputs=[_output(known)] if state == RunState.COMPLETE else [],
    )


def _inputs(known: subjects.Subject) -> "list[InputDataset]":
    """The base and the sources."""
    from openlineage.client.event_v2 import InputDataset

    return [
        InputDataset(
            NAMESPACE,
            subjects.name_and_version(entry.uri)[0],
            facets=_facets(
                entry.uri,
                f"{entry.role}, weights {entry.weights_digest}, "
                f"tasks {', '.join(entry.tasks) or 'none'}",
            ),
        )
        for entry in known.stated.inputs
    ]


def _output(known: subjects.Subject) -> "OutputDataset":
    """The merged version."""
    from openlineage.client.event_v2 import OutputDataset

    accuracies = ", ".join(
        f"{row.get('metric', 'accuracy')} {row.get('value', row.get('accuracy')):.4g} "
        f"on {row['task']}"
        for row in known.stated.evaluation
    )
    return OutputDataset(
        NAMESPACE,
        known.title,
        facets=_facets(
            known.resolved.uri,
            f"merged, weights {known.stated.weights_digest}, lineage {known.lineage_digest}, "
            f"{accuracies or 'not evaluated'}",
        ),
    )


def _facets(uri: str, description: str) -> dict[str, Any]:
    """Which version of the model it is, what it is, and that it is a model."""
    from openlineage.client.facet_v2 import (
        dataset_type_dataset,
        dataset_version_dataset,
        documentation_dataset,
    )

    version = subjects.name_and_version(uri)[1] or uri
    return {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(version, producer=PRODUCER),
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet("MODEL", producer=PRODUCER),
        "documentation": documentation_dataset.DocumentationDatasetFacet(
            description, producer=PRODUCER
        ),
    }
