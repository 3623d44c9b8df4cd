// Base Account's window, keys.coinbase.com, as its SDK sees it: messages between two windows, a
// handshake of keys, then encrypted requests (dist/core/communicator and dist/sign/base-account of
// @base-org/account). Behind it stands a wallet of the dev chain instead of Coinbase's.

import {
  decryptContent,
  deriveSharedSecret,
  encryptContent,
  exportKeyToHexString,
  generateKeyPair,
  importKeyFromHexString,
} from '../node_modules/@base-org/account/dist/util/cipher.js'

export function popupOf({ page, url, wallet }) {
  const { origin } = new URL(url)
  // Messages between windows come later than whatever their sender does now.
  const tell = (data) =>
    setTimeout(() => page.dispatchEvent(Object.assign(new Event('message'), { data, origin })))
  const keys = generateKeyPair()

  async function answer({ id, sender, content }) {
    const own = await keys
    const secret = await deriveSharedSecret(
      own.privateKey,
      await importKeyFromHexString('public', sender),
    )
    const result = content.handshake
      ? { value: null }
      : await run(wallet, (await decryptContent(content.encrypted, secret)).action)
    tell({
      id: crypto.randomUUID(),
      requestId: id,
      sender: await exportKeyToHexString('public', own.publicKey),
      content: { encrypted: await encryptContent({ result }, secret) },
    })
  }

  tell({ id: crypto.randomUUID(), event: 'PopupLoaded' })
  return {
    closed: false,
    focus() {},
    close() {
      this.closed = true
    },
    postMessage(message) {
      if (message.content) answer(message)
    },
  }
}

async function run(wallet, request) {
  try {
    return { value: await wallet.request(request) }
  } catch (error) {
    return { error: { code: error.code, message: error.message } }
  }
}
