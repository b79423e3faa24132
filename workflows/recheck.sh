#!/usr/bin/env bash
# Measure the live version on fresh images; roll back if a rule of its policy has failed.
#
#   NAME=clip-merged TASKS=fresh.yaml workflows/recheck.sh
#
# Exit code 3 if a rule does not hold any more, so that the scheduler raises its alarm.
set -euo pipefail

: "${NAME:?the registered model}" "${TASKS:?task file with fresh images}"
exec mlflow-breadcrumbs recheck "$NAME@${ALIAS:-champion}" --tasks "$TASKS" --rollback
