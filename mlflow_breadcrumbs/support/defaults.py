"""What is taken where nobody says otherwise, by the library and by its commands."""

BATCH_SIZE = 64
"""Images at a time."""
MAX_NORM_RATIO = 1.0
"""Farther than this from the base, in norms of the base, a source is taken for another model's.

If θ_t has nothing to do with θ, then ‖θ_t − θ‖² = ‖θ_t‖² + ‖θ‖², so its ratio is at least 1, and √2
when both are equally large. Fine-tuning moves weights by a few hundredths of their norm.
"""
SEED = 0
SUBSETS = 5
"""That `scaling` draws per number of sources."""
SMALLEST = 2
"""Number of sources that `scaling` begins with."""
BLAME_IMAGES = 200
"""Of `blame`'s first look at every source and layer group."""
FINALISTS = 3
"""Sources, and layer groups, that `blame` measures again on all images."""
MAX_IMAGE_PIXELS = 64_000_000
"""Of one image: 256 MB where Pillow has decoded it. Cameras of telephones make 12 to 50 million."""
MAX_IMAGE_SIDE = 32_768
"""Pixels."""
MAX_IMAGE_ASPECT = 100
"""Longer side to shorter."""
MAX_IMAGE_BYTES = 256 << 20
"""Of one encoded image."""
MAX_REQUEST_PIXELS = 2_000_000_000
"""Of all images of a request: 40,000 of 224 × 224."""

METHOD = "auto"
"""Of a merge whose method and fields are not named."""
