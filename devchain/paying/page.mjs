// A browser's page as the examples of docs/paying.md see it: what the host application told it of the
// job (`terms`), and a window with a wallet in it.

import { popupOf } from './base_popup.mjs'
import { walletOf } from './wallet.mjs'

export function openPage({ url, account }) {
  const wallet = walletOf({ url, account })
  const page = new EventTarget()
  globalThis.window = Object.assign(page, {
    ethereum: wallet,
    location: new URL(url),
    innerWidth: 1280,
    innerHeight: 720,
    screenX: 0,
    screenY: 0,
    open: (address) => popupOf({ page, url: address, wallet }),
  })
}
