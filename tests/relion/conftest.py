"""One project of the real RELION with a trained model and a prediction, shared by the tests of the job."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from relion_project import EXTERNAL, SMALL_TRAINING, Project


@dataclass(frozen=True)
class Run:
    """A project after Import, our train and our predict."""

    project: Project
    train_star: str
    new_star: str
    train: str
    predict: str


@pytest.fixture(scope="session")
def relion_run(relion: object, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Make particles with RELION, import them, train and predict as External jobs of its pipeliner."""
    project = Project.make(tmp_path_factory.mktemp("relion"), training=1000, new=300)
    train_star, new_star = (project.import_particles(f"{name}.star") for name in ("train", "new"))
    train = project.job(
        EXTERNAL, project.external(train_star, job="train", epochs=6, set=SMALL_TRAINING, preset="")
    )
    predict = project.job(
        EXTERNAL, project.external(new_star, in_3dref=f"{train}model/reference.mrc", job="predict")
    )
    return Run(project, train_star, new_star, train, predict)
