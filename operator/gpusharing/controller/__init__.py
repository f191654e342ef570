from gpusharing.kube import aio as aio  # before anything else imports aiohttp
