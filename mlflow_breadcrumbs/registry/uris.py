"""The registry's URIs, `models:/…`: the one place that takes them apart."""

FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-…"
