#!/usr/bin/env bash
# Merge, evaluate and ask for promotion, once: for cron, or as a step of any CI system.
#
#   NAME=clip-merged BASE=models:/clip/1 SOURCES=models:/clip-cars@best,models:/clip-signs@best \
#   TASKS=tasks.yaml POLICY=workflows/policies/starter.yaml workflows/nightly.sh
#
# MLflow is found by MLFLOW_TRACKING_URI, the ledger by BREADCRUMBS_LEDGER_URI. The same sources and
# recipe give the version that there is, so that a night without news changes nothing. A refusal is
# no failure of the job: the table says which rule has not passed, and the champion stays.
set -euo pipefail

: "${NAME:?the registered model of the merge}" "${BASE:?URI of the base}"
: "${SOURCES:?URI,URI,… of the sources}" "${TASKS:?task file}" "${POLICY:?policy file}"
ALIAS=${ALIAS:-champion}
RECIPE=${RECIPE:-} # a recipe file, as a sweep writes it; empty: the default recipe
ACTION=${ACTION:-promote} # or: judge (say what would come of it), merge (leave it to somebody else)

merged=$(mlflow-breadcrumbs merge --base "$BASE" --sources "$SOURCES" --registered-model "$NAME" \
    --tasks "$TASKS" --recipe "$RECIPE" --alias candidate --json)
version=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["version"])' <<< "$merged")
echo "candidate: models:/$NAME/$version"
if [ -n "${GITHUB_OUTPUT:-}" ]; then
    echo "version=$version" >> "$GITHUB_OUTPUT"
fi

options=(--version "$version" --alias "$ALIAS" --policy "$POLICY")
case $ACTION in
    merge) exit 0 ;;
    judge) options+=(--dry-run) ;;
    promote) options+=(--tasks "$TASKS") ;;
    *) echo "ACTION is '$ACTION'; it is promote, judge or merge" >&2 && exit 2 ;;
esac
code=0
mlflow-breadcrumbs promote "$NAME" "${options[@]}" || code=$?
if [ "$code" -eq 3 ]; then
    echo "not promoted; $NAME@$ALIAS stays as it is"
    exit 0
fi
exit "$code"
