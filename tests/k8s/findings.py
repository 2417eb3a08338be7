"""Everything that is checked about an overlay, in one list: object, name of the check, what is wrong."""

import functools
import json
from collections.abc import Iterator, Sequence

from tests.k8s import core, crd, exposure, operator_rules, pods, serve_config, wiring
from tests.k8s.kustomize import Document, named


def of_overlay(documents: Sequence[Document]) -> list[str]:
    """What is wrong with the rendered documents of an overlay; empty when nothing is."""
    alone = [
        f"{named(one)}: {finding}"
        for one in documents
        for finding in _of_document(json.dumps(one, sort_keys=True))
    ]
    # What does not have its own shape cannot be fitted to the rest.
    return alone or list(_of_all(documents))


@functools.cache
def _of_document(text: str) -> tuple[str, ...]:
    return tuple(_alone(json.loads(text)))


def _alone(document: Document) -> Iterator[str]:
    yield from (f"crd: {one}" for one in crd.findings(document))
    yield from (f"core: {one}" for one in core.findings(document))
    yield from (f"operator: {one}" for one in operator_rules.findings(document))
    for group, template in pods.templates(document):
        yield from (f"core: {group}: {one}" for one in core.findings(pods.exploded(template)))
        yield from (f"pod security: {group}: {one}" for one in pods.restricted(template))
    if document["kind"] == "RayService":
        yield from (f"serve: {one}" for one in serve_config.findings(document["spec"]["serveConfigV2"]))


def _of_all(documents: Sequence[Document]) -> Iterator[str]:
    for document in documents:
        yield from (f"images: {named(document)}: {one}" for one in wiring.images(document))
        yield from (f"exposure: {named(document)}: {one}" for one in exposure.outward(document))
        if document["kind"] == "RayService":
            yield from (f"placement: {one}" for one in wiring.placement(document))
        if document["kind"] == "RayJob":
            yield from (f"run: {one}" for one in wiring.run(document, documents))
    yield from (f"references: {one}" for one in wiring.references(documents))
    yield from (f"network: {one}" for one in exposure.network(documents))
