"""The routes, one file a family; each has ``routes(service, options) -> APIRouter``."""
