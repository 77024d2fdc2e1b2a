# SPDX-License-Identifier: Apache-2.0
"""`/images/ID` and `/api/uploads`: pictures out and in.

A picture of an index is asked for by its number alone, so nothing else of the disk can be named.
"""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Header, UploadFile
from fastapi import Path as InPath
from fastapi import Query as InQuery
from PIL import Image
from starlette.responses import Response

from cir_jax.data import picture_files
from cir_jax.errors import UserError
from cir_jax.serving import thumbnails, uploads
from cir_jax.serving.bodies import Id, Upload
from cir_jax.serving.refusals import Refusal, declared
from cir_jax.serving.state import Here

router = APIRouter()
_FULL = "full"
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture.",
        "content": {kind: {} for kind in ("image/webp", "image/jpeg", "image/png", "image/gif")},
    },
    304: {"description": "The picture that the client has is the newest."},
}
Tag = Annotated[str | None, Header(alias="If-None-Match", description="ETag of a picture.")]


@router.get(
    "/images/{id}",
    responses={**_PICTURE, **declared(404)},
    response_class=Response,
    summary="An image of an index, or its thumbnail",
    tags=["images"],
)
async def image(
    here: Here,
    id: Annotated[Id, InPath(description="Number of the image.")],
    index: Annotated[str | None, InQuery(max_length=500)] = None,
    size: Annotated[
        str,
        InQuery(
            pattern="^(64|128|256|512|1024|full)$",
            description="Longest side of the thumbnail in pixels, or `full`.",
        ),
    ] = "256",
    if_none_match: Tag = None,
) -> Response:
    """Thumbnails are kept, and a browser is told that it may keep them."""
    name, found = here.served.find(index)
    place = place_of(found, id)
    tag = f'"{await here.aside(_version, place)}-{size}"'
    if if_none_match and tag in if_none_match:
        return Response(status_code=304, headers=_kept(tag))
    try:
        if size == _FULL:
            content, media = await here.aside(thumbnails.whole, place)
        else:
            key = name, id, tag
            make = lambda: thumbnails.small(_decoded(place), int(size))
            content, media = await here.aside(here.thumbnails.of, key, make), thumbnails.MEDIA
    except UserError as error:
        raise Refusal(404, str(error), param="id", code="unreadable") from None
    return Response(content, media_type=media, headers=_kept(tag))


@router.post(
    "/api/uploads",
    responses=declared(429),
    summary="Send an image, to ask with it several times",
    tags=["images"],
)
async def upload(
    here: Here, image: Annotated[UploadFile, File(description="An image file.")]
) -> Upload:
    """It is kept under its content until so much else was sent that there is no room for it."""
    content, most = await image.read(), here.settings.upload_bytes
    picture = await here.aside(uploads.opened, content, here.settings.pixels, most, "image")
    key = here.uploads.keep(content)
    ids = await here.aside(here.served.ids, content)
    return Upload(upload=key, width=picture.width, height=picture.height, ids=ids)


@router.get(
    "/api/uploads/{upload}",
    responses={**_PICTURE, **declared(404)},
    response_class=Response,
    summary="The thumbnail of an upload",
    tags=["images"],
)
async def uploaded(
    here: Here,
    upload: Annotated[str, InPath(pattern="^[0-9a-f]{64}$")],
    if_none_match: Tag = None,
) -> Response:
    """As long as it is kept."""
    content, tag = here.uploads.find(upload), f'"{upload}"'
    if if_none_match and tag in if_none_match:
        return Response(status_code=304, headers=_kept(tag))

    def make() -> bytes:
        settings = here.settings
        return thumbnails.small(
            uploads.opened(content, settings.pixels, settings.upload_bytes, "upload"), 256
        )

    small = await here.aside(here.thumbnails.of, ("upload", upload), make)
    return Response(small, media_type=thumbnails.MEDIA, headers=_kept(tag))


def place_of(index: Any, id: int) -> Path:
    """The file of an image of an index.

    Raises:
      Refusal: 404, there is no such image, or its file is not where it was.
    """
    try:
        return Path(index.path_of(id))
    except UserError as error:
        raise Refusal(404, str(error), param="id", code="no_such_image") from None


def _decoded(place: Path) -> Image.Image:
    return picture_files.decoded(place, picture_files.NATURAL_FORMATS)


def _version(place: Path) -> str:
    """Which content a file has, as far as its size and time say it."""
    try:
        found = place.stat()
    except OSError:
        raise Refusal(
            404, f"image {place.name} is not there any more", param="id", code="no_file"
        ) from None
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def _kept(tag: str) -> dict[str, str]:
    """The browser may keep it for an hour, and then asks whether it is still the same.

    Nobody between may: it was given to who showed the token.
    """
    return {"ETag": tag, "Cache-Control": "private, max-age=3600"}
