// A customer's wallet over a dev chain's node, whose accounts are unlocked: an EIP-1193 provider.
// What it knows beyond the node is ERC-5792, as an externally owned account has it: a call becomes a
// transaction, and a data suffix is appended to the transaction's data.

const VERSION = '2.0.0'
const UNSUPPORTED_METHOD = 4200
const UNSUPPORTED_CAPABILITY = 5700
const INVALID_PARAMS = -32602

export class WalletError extends Error {
  constructor(code, message) {
    super(message)
    this.code = code
  }
}

export function walletOf({ url, account }) {
  const node = (method, params = []) => callNode(url, method, params)
  return {
    async request({ method, params = [] }) {
      switch (method) {
        case 'eth_accounts':
        case 'eth_requestAccounts':
          return [account]
        case 'wallet_switchEthereumChain':
          return null
        case 'eth_sendTransaction':
          return send(node, params[0])
        case 'wallet_sendCalls':
          return sendCalls(node, account, params[0])
        default:
          if (method.startsWith('wallet_')) throw new WalletError(UNSUPPORTED_METHOD, method)
          return node(method, params)
      }
    },
    on() {},
    removeListener() {},
  }
}

async function sendCalls(node, account, { version, chainId, calls, capabilities = {} }) {
  if (version !== VERSION || BigInt(chainId) !== BigInt(await node('eth_chainId')))
    throw new WalletError(INVALID_PARAMS, `version ${version}, chain ${chainId}`)
  for (const [name, { optional }] of Object.entries(capabilities))
    if (name !== 'dataSuffix' && name !== 'attribution' && !optional)
      throw new WalletError(UNSUPPORTED_CAPABILITY, name)
  // `attribution` is what Base Account's SDK calls it.
  const suffix = capabilities.dataSuffix?.value ?? capabilities.attribution?.suffix ?? '0x'
  let id
  for (const { to, data, value } of calls)
    id = await send(node, { from: account, to, data: data + suffix.slice(2), value: value ?? '0x0' })
  return { id }
}

// Fees are the wallet's to set; a dev chain takes none.
function send(node, transaction) {
  return node('eth_sendTransaction', [{ gasPrice: '0x0', ...transaction }])
}

async function callNode(url, method, params) {
  const answer = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
  })
  const { result, error } = await answer.json()
  if (error) throw new WalletError(error.code, `${method}: ${error.message}`)
  return result
}
