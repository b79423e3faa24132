"""A whole zoo on one machine in a few minutes: what `mlflow-breadcrumbs quickstart` does.

```
settings    how large, how long
materials   images that installed packages carry: handwriting, typefaces, photographs
variety     how images differ from one step of the pretraining to the next
pretrain    a small CLIP learns prints of all kinds with captions: the base
demo_tasks  six teams photograph signs of their own in poor light: the tasks
run         import the base, fine-tune it per task, merge through `mlflow run`, show the result
staging     a folder and a store of its own, and what is shown in the end
contest     the other ways to merge beside it, untuned, and two of them tuned as well
conclusion  what came out, in three sentences
text        the same with text models, from a pretrained encoder that a package carries
```

No image is drawn by a program: digits are scikit-learn's handwritten ones, letters and arrows are
the typefaces that come with matplotlib, surfaces are scikit-learn's two photographs.
"""
