"""Every error that a user can cause, each with one message: what failed, the values, the remedy.

```
BreadcrumbsError
├── RecipeError        (ValueError)    a field of a recipe is out of its range
├── CheckpointError    (ValueError)    a file is not a checkpoint that can be read safely
├── MergeError         (ValueError)    these checkpoints can't be merged
├── TaskError          (ValueError)    a task file, its images or its head are unusable
│   ├── ImageError                     an image file can't be decoded
│   └── EvaluatorError                 an evaluator of the user's can't be used, or fails
├── RegistryError      (LookupError)   a version can't be found, read or registered
│   ├── UnreachableError               the tracking server does not answer
│   └── AbsentError                    what a page is about is not there, or may not be seen
├── StatementError     (ValueError)    a lineage.json is not what it should be
├── SigningError       (ValueError)    a key can't be used to sign or to verify
├── ExtraError         (ImportError)   an optional library is not installed
├── IntegrityError     (ValueError)    bytes differ from the digest recorded for them
├── ArchitectureError  (ValueError)    an architecture is unknown, or open_clip can't build it
├── QuickstartError    (RuntimeError)  the demonstration can't be made here
├── PolicyError        (ValueError)    a policy is not what it should be
├── PromotionError     (RuntimeError)  an alias can't be moved, for another reason than a policy
│   └── RaceError                      the alias is not where it was expected: somebody was first
├── GuardError         (ValueError)    the guard of a server can't stand as it is configured
├── LedgerError        (RuntimeError)  the ledger can't be reached, or is not one
├── HookError          (RuntimeError)  a webhook can't be received, registered or delivered
│   ├── SignatureError                 a webhook was not signed as it must be
│   └── ReplayError                    a webhook was delivered before
├── OutputError        (OSError)       a result can't be written to the file that was named
├── DeviceError        (RuntimeError)  the device asked for is absent or too small
└── ExecutorError      (RuntimeError)  workers elsewhere can't be had, or die again and again
```

The command line turns each into one line on stderr and exit code 1.
"""

from mlflow_breadcrumbs.support import credentials


class BreadcrumbsError(Exception):
    """A job stopped, and the message says why and what to do; passwords in it are masked."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(credentials.cleaned(argument) for argument in arguments))


class RecipeError(BreadcrumbsError, ValueError):
    """A field of a recipe is out of its range."""


class CheckpointError(BreadcrumbsError, ValueError):
    """A file is not a checkpoint that can be read safely."""


class MergeError(BreadcrumbsError, ValueError):
    """These checkpoints can't be merged."""


class TaskError(BreadcrumbsError, ValueError):
    """A task file, its images or its classification head are unusable."""


class ImageError(TaskError):
    """An image file is of no known format, or damaged."""


class EvaluatorError(TaskError):
    """A user's evaluator can't be used, fails, or gives what is no result."""


class RegistryError(BreadcrumbsError, LookupError):
    """A version can't be found, read or registered."""


class UnreachableError(RegistryError):
    """The tracking server does not answer, so nothing is known about what it holds."""


class AbsentError(RegistryError):
    """What a page of the server app is about is not there, or is not for the one who asks."""


class StatementError(BreadcrumbsError, ValueError):
    """A `lineage.json` is not what it should be."""


class SigningError(BreadcrumbsError, ValueError):
    """A key can't be used to sign or to verify."""


class ExtraError(BreadcrumbsError, ImportError):
    """An optional library is not installed."""


class IntegrityError(BreadcrumbsError, ValueError):
    """Bytes differ from the digest that was recorded for them."""


class ArchitectureError(BreadcrumbsError, ValueError):
    """An architecture is unknown, or open_clip can't build it."""


class QuickstartError(BreadcrumbsError, RuntimeError):
    """The demonstration can't be made here."""


class PolicyError(BreadcrumbsError, ValueError):
    """A policy can't be read, or has a field or a value that it can't have."""


class PromotionError(BreadcrumbsError, RuntimeError):
    """An alias can't be moved as asked, for another reason than what a policy says."""


class RaceError(PromotionError):
    """An alias is not at the version that it was expected at: somebody else moved it first."""


class GuardError(BreadcrumbsError, ValueError):
    """A server's configuration can't be read, or aliases can't be guarded by it."""


class LedgerError(BreadcrumbsError, RuntimeError):
    """The ledger can't be reached or written, or is of a newer release."""


class HookError(BreadcrumbsError, RuntimeError):
    """A webhook can't be received, registered or delivered."""


class SignatureError(HookError):
    """A webhook was not signed as it must be: with our secret, over this content, lately."""


class ReplayError(HookError):
    """A webhook was delivered before."""


class OutputError(BreadcrumbsError, OSError):
    """A result can't be written to the file that was named."""


class DeviceError(BreadcrumbsError, RuntimeError):
    """The device asked for is absent or too small."""


class ExecutorError(BreadcrumbsError, RuntimeError):
    """Workers elsewhere can't be had, or die again and again."""
