"""The HTTP service: app, pages, webhooks, access, exports, maintenance."""
