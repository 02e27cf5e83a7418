"""The Flask application: which checks, routes and answers to errors it has."""

from flask import Flask

from backend.jobs.queue import JobQueue
from backend.projects.composition import Projects
from backend.web.access import MOST_BODY_BYTES, guard
from backend.web.error_answers import answer_errors
from backend.web.explain_routes import create_explain_routes
from backend.web.export_routes import create_export_routes
from backend.web.gallery_routes import create_gallery_routes
from backend.web.health import create_health_routes
from backend.web.label_studio_routes import create_label_studio_routes
from backend.web.next_routes import create_next_routes
from backend.web.pages import create_pages
from backend.web.prediction_slots import PredictionSlots
from backend.web.project_routes import create_project_routes
from backend.web.propagation_routes import create_propagation_routes
from backend.web.quality_routes import create_quality_routes
from backend.web.request_log import log_requests
from backend.web.thumbnail_routes import create_thumbnail_routes


def create_app(projects: Projects, queue: JobQueue, *, is_for_label_studio: bool = True) -> Flask:
    """Return the Flask application over one set of projects; it owns no state of its own.

    Args:
        projects: that it shows.
        queue: for what takes longer than a request.
        is_for_label_studio: with the routes that Label Studio calls, and those of propagations.
    """
    app = Flask("softmatcher", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MOST_BODY_BYTES
    slots = PredictionSlots(projects.settings.service_threads, projects.metrics)
    log_requests(app, projects.metrics)
    guard(app, projects.settings)
    answer_errors(app)
    if is_for_label_studio:
        app.register_blueprint(create_label_studio_routes(projects, queue, slots))
        app.register_blueprint(create_propagation_routes(projects, queue))
    for routes in (
        create_health_routes(projects),
        create_explain_routes(projects, slots),
        create_pages(projects, queue),
        create_project_routes(projects, queue),
        create_next_routes(projects, queue),
        create_quality_routes(projects, queue),
        create_thumbnail_routes(projects),
        create_gallery_routes(projects, queue, slots),
        create_export_routes(projects),
    ):
        app.register_blueprint(routes)
    return app
