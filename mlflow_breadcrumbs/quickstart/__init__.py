"""A whole zoo on one machine in three minutes: what `mlflow-breadcrumbs quickstart` does.

```
settings    how large, how long
materials   images that installed packages carry: handwriting, typefaces, photographs
pretrain    a small CLIP learns clean prints with captions: the base
demo_tasks  six teams photograph signs of their own in poor light: the tasks
run         import the base, fine-tune it per task, merge through `mlflow run`, show the result
contest     the other ways to merge beside it, each with the scale that is best in validation
conclusion  what came out, in three sentences
```

No image is drawn by a program: digits are scikit-learn's handwritten ones, letters and arrows are
the typefaces that come with matplotlib, surfaces are scikit-learn's two photographs.
"""
