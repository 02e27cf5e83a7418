"""Routes of a project's quality on its own annotations: measure, show, draw the worst cases, set what suits it."""

from flask import Blueprint, Response
from werkzeug.wrappers import Response as AnyResponse

from backend.core.types import Json
from backend.errors import BadInputError, NotFoundError
from backend.jobs.queue import JobQueue
from backend.projects.composition import Projects
from backend.projects.quality.figures import unpack_mask, without_masks
from backend.web.known_projects import project_of
from backend.web.request_fields import answer_done, read_fields, read_flag
from backend.web.thumbnail_routes import jpeg_response

_ON_A_PAGE = ("matchers", "min_score")
"""What a job compares: profiles need other models than the workers have."""


def create_quality_routes(projects: Projects, queue: JobQueue) -> Blueprint:
    """Return the routes, over one set of projects."""
    routes = Blueprint("quality", __name__, url_prefix="/projects/<int:project_id>/quality")
    store = projects.store

    @routes.post("")
    def estimate(project_id: int) -> tuple[Response, int] | AnyResponse:
        key = project_of(store, project_id).key
        fields = read_fields()
        wanted = fields.get("compare")
        if wanted is not None and (not isinstance(wanted, list) or not all(one in _ON_A_PAGE for one in wanted)):
            raise BadInputError(f'expected "compare": a list of {" and ".join(_ON_A_PAGE)}')
        compare = [one for one in _ON_A_PAGE if read_flag(fields, f"compare_{one}") or one in (wanted or ())]
        return answer_done(project_id, {"job": queue.estimate_quality(key, compare)}, 202, tab="quality")

    @routes.get("")
    def show(project_id: int) -> Json:
        found = store.quality.newest(project_of(store, project_id).key)
        if found is None:
            return {"model_version": None, "estimated_at": None, "labels": {}, "iou": None}
        return {"model_version": found[0], "estimated_at": found[1], **without_masks(found[2])}

    @routes.post("/apply")
    def apply(project_id: int) -> tuple[Response, int] | AnyResponse:
        changed = projects.quality.apply_recommended(project_of(store, project_id))
        return answer_done(project_id, {"extra_params": changed}, 200, tab="quality")

    @routes.get("/worst/<int:number>.jpg")
    def worst(project_id: int, number: int) -> Response:
        project = project_of(store, project_id)
        newest = store.quality.newest(project.key)
        cases = (newest[2].get("worst") or []) if newest else []
        if number >= len(cases):
            raise NotFoundError(f"there is no worst case {number} (any more): measure again")
        case = cases[number]
        content = projects.thumbnails.of_masks(
            project, int(case["task"]), str(case["image"]),
            found=unpack_mask(case["found"]), marked=unpack_mask(case["marked"]),
        )  # fmt: skip
        return jpeg_response(content)

    return routes
