"""What tests do in Label Studio's editor."""

from playwright.sync_api import Page

from backend.core.types import Json

SLOW_MS = 60_000


def open_task(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".konvajs-content canvas")
    # The canvas is there before the image; the size of the stage is known after it.
    page.wait_for_function(
        "() => window.Htx?.annotationStore?.selected?.names.get('image')?.stageWidth > 50"
        " && window.Htx.annotationStore.selected.names.get('image').imageIsLoaded"
    )


def click_image(page: Page, point_xy: tuple[float, float], size_hw: tuple[int, int]) -> None:
    """Click at a point given in px of the image."""
    stage_width, stage_height = page.evaluate(
        "() => { const image = Htx.annotationStore.selected.names.get('image');"
        " return [image.stageWidth, image.stageHeight]; }"
    )
    canvas = page.locator(".konvajs-content canvas").first.bounding_box()
    assert canvas is not None
    page.mouse.click(
        canvas["x"] + point_xy[0] / size_hw[1] * stage_width, canvas["y"] + point_xy[1] / size_hw[0] * stage_height
    )


def serialized(page: Page) -> list[Json]:
    """The regions of the annotation on the screen as the editor would submit them."""
    regions: list[Json] = page.evaluate("() => Htx.annotationStore.selected.serializeAnnotation()")
    return regions
