from gpusharing.kube import aio as aio  # before whatever else imports aiohttp
