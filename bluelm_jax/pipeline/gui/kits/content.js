// Seeded random numbers, and the words that fill a screen in Chinese and English.

window.random = (seed) => {
  let s = (seed * 2654435761 + 1013904223) >>> 0;
  const next = () => {  // mulberry32
    s = (s + 0x6d2b79f5) >>> 0;
    let t = Math.imul(s ^ (s >>> 15), s | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const rng = {
    next,
    int: (low, high) => low + Math.floor(next() * (high - low + 1)),  // both ends included
    chance: (p) => next() < p,
    pick: (list) => list[Math.floor(next() * list.length)],
    some: (list, n) => rng.shuffle([...list]).slice(0, n),
    shuffle: (list) => {
      for (let i = list.length - 1; i > 0; i--) {
        const j = Math.floor(next() * (i + 1));
        [list[i], list[j]] = [list[j], list[i]];
      }
      return list;
    },
  };
  return rng;
};

const COLORS = {
  red: '#e5383b', orange: '#f48c06', green: '#07b155', blue: '#1769ff', purple: '#8a3ffc', black: '#202124', pink: '#f062a8', teal: '#0fa3a3',
};

const WORDS = {
  en: {
    page: 'Settings,Network,Messages,Account,Orders,Wallet,Music,Travel,Health,Photos,Notes,Weather,Shopping,Library,Calendar,Security,Family,Sports,Kitchen,Garden'.split(','),
    option: 'Wi-Fi,Bluetooth,Dark mode,Location,Backup,Updates,Sounds,Vibration,Face unlock,Roaming,Hotspot,Auto play,Subtitles,Reminders,Night light,Sync,Data saver,Captions,Privacy,Language'.split(','),
    action: 'Save,Send,Pay,Next,Join,Buy now,Sign in,Submit,Retry,Share,Follow,Start,Delete,Cancel,Confirm,Search,Reset,Invite,Order,Continue'.split(','),
    thing: 'Green tea,Desk lamp,Headphones,Notebook,Backpack,Sneakers,Coffee,Bicycle,Umbrella,Camera,Keyboard,Watch,Jacket,Sofa,Teapot,Ball,Guitar,Blanket,Mug,Chair'.split(','),
    person: 'Alice,Ben,Clara,David,Emma,Frank,Grace,Henry,Iris,Jack,Kate,Leo,Mia,Noah,Olive,Paul'.split(','),
    tab: 'Home,Shop,News,Me,Chats,Find,Cart,Mine,Live,Plan,Maps,Game'.split(','),
    field: 'Name,Phone,Email,Address,City,Code,Password,Company,Note,Date'.split(','),
    text: 'Your parcel will arrive tomorrow.|Tap an item to see more.|New version is ready to install.|No new messages today.|Meeting moved to Friday.|Battery is almost full.|Thanks for your order.|Two friends are online.'.split('|'),
    search: 'Search', price: '$',
  },
  zh: {
    page: '设置,网络,消息,账户,订单,钱包,音乐,旅行,健康,相册,笔记,天气,购物,图书馆,日历,安全,家庭,运动,厨房,花园'.split(','),
    option: '无线网络,蓝牙,深色模式,定位服务,自动备份,系统更新,提示音,振动,面容解锁,漫游,个人热点,自动播放,字幕,提醒,夜间模式,同步,省流量,朗读,隐私,语言'.split(','),
    action: '保存,发送,支付,下一步,加入,立即购买,登录,提交,重试,分享,关注,开始,删除,取消,确认,搜索,重置,邀请,下单,继续'.split(','),
    thing: '绿茶,台灯,耳机,笔记本,背包,运动鞋,咖啡,自行车,雨伞,相机,键盘,手表,外套,沙发,茶壶,篮球,吉他,毛毯,水杯,椅子'.split(','),
    person: '李雷,韩梅,王芳,张伟,刘洋,陈静,杨帆,赵敏,周杰,吴昊,郑爽,孙悦,林涛,何欢,高远,马力'.split(','),
    tab: '首页,商城,资讯,我的,聊天,发现,购物车,会员,直播,计划,地图,游戏'.split(','),
    field: '姓名,手机号,邮箱,地址,城市,验证码,密码,公司,备注,日期'.split(','),
    text: '您的包裹明天送达。|点击条目查看详情。|新版本已可安装。|今天没有新消息。|会议改到星期五。|电量即将充满。|感谢您的订购。|有两位好友在线。'.split('|'),
    search: '搜索', price: '¥',
  },
};

// The words of a language, and makers of typical values.
window.content = (language, rng) => {
  const words = WORDS[language];
  return {
    ...words,
    one: (kind) => rng.pick(words[kind]),
    several: (kind, n) => rng.some(words[kind], n),
    amount: () => `${words.price}${rng.int(1, 399)}${rng.chance(0.4) ? '.' + rng.pick(['00', '50', '90', '99']) : ''}`,
    time: () => `${rng.int(0, 23)}:${String(rng.int(0, 59)).padStart(2, '0')}`,
  };
};
