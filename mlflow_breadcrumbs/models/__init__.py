"""Models, tasks and images.

`architecture` builds open_clip models from their configuration; `config_rules` are what one from
outside may say, `bounds` how large one may be; `agreement` holds two of those side by side,
`assumptions` says what a bare name leaves open; `tasks` reads task files; `image_sets` are labelled
images and `readers` get them from folders (`image_folders`), Parquet files (`parquet_images`) and
torchvision; `decoding` makes pictures of image files, within `image_limits`; `features` encodes
images; `task_heads` are the frozen classification heads.
"""
